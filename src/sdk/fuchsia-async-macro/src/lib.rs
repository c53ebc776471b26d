//! Attributes that turn an `async fn` into a function that runs it on an executor of `fuchsia-async`, under the names
//! that Fuchsia uses. `fuchsia-async` re-exports them; nothing else belongs here.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{ItemFn, LitInt, Token, parse_macro_input};

/// Runs the function on a `LocalExecutor`; with `(test)` as a test.
#[proc_macro_attribute]
pub fn run_singlethreaded(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = parse_macro_input!(attribute as Arguments);
    if let Some(threads) = arguments.threads {
        return syn::Error::new(threads.span(), "a thread count belongs in #[run]")
            .to_compile_error()
            .into();
    }
    expand(item, arguments.test, &quote!(::fuchsia_async::LocalExecutor::new().run_singlethreaded))
}

/// Runs the function on a `SendExecutor` with as many threads as the argument says; with `, test` as a test.
#[proc_macro_attribute]
pub fn run(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = parse_macro_input!(attribute as Arguments);
    let Some(threads) = arguments.threads else {
        return syn::Error::new(
            proc_macro2::Span::call_site(),
            "the number of threads is missing, as in #[run(2)]",
        )
        .to_compile_error()
        .into();
    };
    expand(item, arguments.test, &quote!(::fuchsia_async::SendExecutor::new(#threads).run))
}

/// `test`, a thread count, or both.
#[derive(Default)]
struct Arguments {
    threads: Option<LitInt>,
    test: bool,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut arguments = Arguments::default();
        while !input.is_empty() {
            if input.peek(LitInt) {
                arguments.threads = Some(input.parse()?);
            } else {
                let word: syn::Ident = input.parse()?;
                if word != "test" {
                    return Err(syn::Error::new(
                        word.span(),
                        "expected `test` or a number of threads",
                    ));
                }
                arguments.test = true;
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(arguments)
    }
}

fn expand(item: TokenStream, test: bool, run: &proc_macro2::TokenStream) -> TokenStream {
    let ItemFn { attrs, vis, mut sig, block } = parse_macro_input!(item as ItemFn);
    if sig.asyncness.take().is_none() {
        return syn::Error::new_spanned(sig.fn_token, "only an async fn needs an executor")
            .to_compile_error()
            .into();
    }
    let test = test.then(|| quote!(#[::core::prelude::v1::test]));
    let output = &sig.output;
    // An async fn and not an async block, so that `?` and `return` see the declared type.
    let (parameters, arguments): (Vec<_>, Vec<_>) = sig
        .inputs
        .iter()
        .filter_map(|input| match input {
            syn::FnArg::Typed(typed) => Some((typed, &typed.pat)),
            syn::FnArg::Receiver(_) => None,
        })
        .unzip();
    if parameters.len() != sig.inputs.len() {
        return syn::Error::new_spanned(&sig.inputs, "a method cannot be run, it has a receiver")
            .to_compile_error()
            .into();
    }
    quote! {
        #(#attrs)*
        #test
        #vis #sig {
            async fn function(#(#parameters),*) #output #block
            #run(function(#(#arguments),*))
        }
    }
    .into()
}
