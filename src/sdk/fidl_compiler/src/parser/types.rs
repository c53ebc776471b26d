//! Attributes, constants, types and layouts.

use super::{MAX_NESTING, Parsed, Parser};
use crate::ast::{
    Attribute, AttributeArgument, Attributes, Constant, Layout, LayoutKind, LayoutMember,
    LayoutReference, Literal, MemberKind, Modifier, Ordinal, TypeConstructor, TypeParameter,
};
use crate::lexer::{Token, TokenKind};

const LAYOUT_MODIFIERS: [&str; 3] = ["strict", "flexible", "resource"];

impl Parser<'_> {
    pub(super) fn attributes(&mut self) -> Parsed<Attributes> {
        let mut attributes = Attributes::default();
        loop {
            if let Some(token) = self.eat(TokenKind::DocComment) {
                let line = self.text_of(token).trim_start_matches('/');
                let line = line.strip_prefix(' ').unwrap_or(line).trim_end();
                attributes.doc.push(line.to_owned());
            } else if self.eat(TokenKind::At).is_some() {
                let name = self.identifier()?;
                let arguments = self.arguments()?;
                if let Some(first) = attributes.get(&name.text) {
                    let note = first.name.span;
                    self.diagnostics.error_with_note(
                        name.span,
                        format!("attribute `@{}` is given twice", name.text),
                        note,
                        "first given here",
                    );
                }
                attributes.list.push(Attribute { name, arguments });
            } else {
                return Ok(attributes);
            }
        }
    }

    fn arguments(&mut self) -> Parsed<Vec<AttributeArgument>> {
        let mut arguments = Vec::new();
        if self.eat(TokenKind::OpenParen).is_none() {
            return Ok(arguments);
        }
        loop {
            let name = if self.at(TokenKind::Identifier) && self.peek_at(1).kind == TokenKind::Equal
            {
                let name = self.identifier()?;
                self.next();
                Some(name)
            } else {
                None
            };
            arguments.push(AttributeArgument { name, value: self.constant()? });
            if self.eat(TokenKind::Comma).is_none() {
                break;
            }
        }
        self.expect(TokenKind::CloseParen)?;
        Ok(arguments)
    }

    /// The words of `words` that stand here, each with its availability arguments.
    pub(super) fn modifiers(&mut self, words: &[&str]) -> Parsed<Vec<Modifier>> {
        let mut modifiers = Vec::new();
        while words.iter().any(|word| self.at_word(word)) && self.is_modifier() {
            let word = self.identifier()?;
            let arguments = self.arguments()?;
            modifiers.push(Modifier { word, arguments });
        }
        Ok(modifiers)
    }

    /// Whether the word here modifies what comes after it, rather than being a name itself.
    fn is_modifier(&self) -> bool {
        match self.peek_at(1).kind {
            TokenKind::Identifier => true,
            // `flexible(added=2)` but not a method that is called `flexible`.
            TokenKind::OpenParen => {
                self.peek_at(2).kind == TokenKind::Identifier
                    && self.peek_at(3).kind == TokenKind::Equal
            }
            _ => false,
        }
    }

    pub(super) fn constant(&mut self) -> Parsed<Constant> {
        let first = self.constant_term()?;
        if !self.at(TokenKind::Pipe) {
            return Ok(first);
        }
        let start = first.span();
        let mut terms = vec![first];
        while self.eat(TokenKind::Pipe).is_some() {
            terms.push(self.constant_term()?);
        }
        Ok(Constant::Or(terms, start.to(self.previous_span())))
    }

    fn constant_term(&mut self) -> Parsed<Constant> {
        let token = self.peek();
        match token.kind {
            TokenKind::String => {
                self.next();
                let text = self.unescape(token);
                Ok(Constant::Literal(Literal::String(text), token.span))
            }
            TokenKind::Number => {
                self.next();
                let text = self.text_of(token).to_owned();
                Ok(Constant::Literal(Literal::Number(text), token.span))
            }
            TokenKind::Identifier => {
                let name = self.compound_identifier()?;
                if name.parts.len() == 1 && matches!(name.parts[0].text.as_str(), "true" | "false")
                {
                    let value = name.parts[0].text == "true";
                    return Ok(Constant::Literal(Literal::Bool(value), name.span));
                }
                Ok(Constant::Identifier(name))
            }
            TokenKind::OpenParen => {
                // Nesting is limited so that no source overflows the stack.
                if self.nesting >= MAX_NESTING {
                    return self.unexpected("less nesting");
                }
                self.next();
                self.nesting += 1;
                let inner = self.constant();
                self.nesting -= 1;
                let inner = inner?;
                self.expect(TokenKind::CloseParen)?;
                Ok(inner)
            }
            _ => self.unexpected("a constant"),
        }
    }

    fn unescape(&mut self, token: Token) -> String {
        let text = self.text_of(token);
        let inner = text.strip_prefix('"').unwrap_or(text);
        let inner = inner.strip_suffix('"').unwrap_or(inner);
        let mut out = String::with_capacity(inner.len());
        let mut rest = inner.chars();
        let mut bad = None;
        while let Some(c) = rest.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            match rest.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(c @ ('\\' | '"')) => out.push(c),
                Some('u') => {
                    let hex = rest.as_str().strip_prefix('{').and_then(|s| s.split_once('}'));
                    let code = hex.and_then(|(hex, _)| u32::from_str_radix(hex, 16).ok());
                    match (hex, code.and_then(char::from_u32)) {
                        (Some((_, after)), Some(c)) => {
                            out.push(c);
                            rest = after.chars();
                        }
                        _ => bad = Some("u".to_owned()),
                    }
                }
                other => bad = Some(other.map(String::from).unwrap_or_default()),
            }
        }
        if let Some(bad) = bad {
            self.diagnostics.error(token.span, format!("`\\{bad}` is not an escape of a string"));
        }
        out
    }

    pub(super) fn type_constructor(&mut self) -> Parsed<TypeConstructor> {
        let start = self.peek().span;
        if self.nesting >= MAX_NESTING {
            return self.unexpected(&format!("at most {MAX_NESTING} types inside each other"));
        }
        self.nesting += 1;
        let parsed = self.type_constructor_inner();
        self.nesting -= 1;
        let (layout, parameters, constraints) = parsed?;
        let span = start.to(self.previous_span());
        Ok(TypeConstructor { layout, parameters, constraints, span })
    }

    fn type_constructor_inner(
        &mut self,
    ) -> Parsed<(LayoutReference, Vec<TypeParameter>, Vec<Constant>)> {
        let attributes = self.attributes()?;
        let layout = if self.at_layout() {
            LayoutReference::Inline(Box::new(self.layout(attributes)?))
        } else {
            if let Some(attribute) = attributes.list.first() {
                let span = attribute.name.span;
                self.diagnostics
                    .error(span, "an attribute is not allowed before the name of a type");
            }
            LayoutReference::Named(self.compound_identifier()?)
        };
        let mut parameters = Vec::new();
        if self.eat(TokenKind::OpenAngle).is_some() {
            loop {
                parameters.push(self.type_parameter()?);
                if self.eat(TokenKind::Comma).is_none() {
                    break;
                }
            }
            self.expect(TokenKind::CloseAngle)?;
        }
        let mut constraints = Vec::new();
        if self.eat(TokenKind::Colon).is_some() {
            if self.eat(TokenKind::OpenAngle).is_some() {
                loop {
                    constraints.push(self.constant()?);
                    if self.eat(TokenKind::Comma).is_none() {
                        break;
                    }
                }
                self.expect(TokenKind::CloseAngle)?;
            } else {
                constraints.push(self.constant_term()?);
            }
        }
        Ok((layout, parameters, constraints))
    }

    fn type_parameter(&mut self) -> Parsed<TypeParameter> {
        if matches!(self.peek().kind, TokenKind::Number | TokenKind::String) {
            Ok(TypeParameter::Constant(self.constant()?))
        } else {
            Ok(TypeParameter::Type(self.type_constructor()?))
        }
    }

    fn layout_kind(&self, ahead: usize) -> Option<LayoutKind> {
        let token = self.peek_at(ahead);
        if token.kind != TokenKind::Identifier {
            return None;
        }
        let kind = match self.text_of(token) {
            "struct" => LayoutKind::Struct,
            "table" => LayoutKind::Table,
            "union" => LayoutKind::Union,
            "enum" => LayoutKind::Enum,
            "bits" => LayoutKind::Bits,
            _ => return None,
        };
        // A type that is merely called `struct` is followed by something else.
        matches!(self.peek_at(ahead + 1).kind, TokenKind::OpenBrace | TokenKind::Colon)
            .then_some(kind)
    }

    pub(super) fn at_layout(&self) -> bool {
        self.layout_kind(0).is_some()
            || (LAYOUT_MODIFIERS.iter().any(|word| self.at_word(word)) && self.is_modifier())
    }

    pub(super) fn layout(&mut self, attributes: Attributes) -> Parsed<Layout> {
        let modifiers = self.modifiers(&LAYOUT_MODIFIERS)?;
        let Some(kind) = self.layout_kind(0) else {
            return self.unexpected("`struct`, `table`, `union`, `enum` or `bits`");
        };
        let start = self.next().span;
        let subtype = if self.eat(TokenKind::Colon).is_some() {
            Some(self.type_constructor()?)
        } else {
            None
        };
        if let Some(subtype) = &subtype
            && !matches!(kind, LayoutKind::Enum | LayoutKind::Bits)
        {
            self.diagnostics.error(subtype.span, "only an enum or bits has an underlying type");
        }
        let members = self.braced(|parser| parser.layout_member(kind))?;
        let span = start.to(self.previous_span());
        Ok(Layout { attributes, modifiers, kind, subtype, members, span })
    }

    fn layout_member(&mut self, kind: LayoutKind) -> Parsed<LayoutMember> {
        let attributes = self.attributes()?;
        let (name, kind) = match kind {
            LayoutKind::Struct => {
                let name = self.identifier()?;
                let ty = self.type_constructor()?;
                let default = if self.eat(TokenKind::Equal).is_some() {
                    Some(self.constant()?)
                } else {
                    None
                };
                (name, MemberKind::Field(ty, default))
            }
            LayoutKind::Table | LayoutKind::Union => {
                let ordinal = self.ordinal()?;
                self.expect(TokenKind::Colon)?;
                let name = self.identifier()?;
                if name.text == "reserved" && self.at(TokenKind::Semicolon) {
                    (name, MemberKind::Reserved(ordinal))
                } else {
                    (name, MemberKind::Ordinaled(ordinal, self.type_constructor()?))
                }
            }
            LayoutKind::Enum | LayoutKind::Bits => {
                let name = self.identifier()?;
                self.expect(TokenKind::Equal)?;
                (name, MemberKind::Value(self.constant()?))
            }
        };
        self.expect(TokenKind::Semicolon)?;
        Ok(LayoutMember { attributes, name, kind })
    }

    fn ordinal(&mut self) -> Parsed<Ordinal> {
        let token = self.expect(TokenKind::Number)?;
        let value = self.text_of(token).parse().unwrap_or(0);
        if value == 0 {
            self.diagnostics.error(
                token.span,
                format!("ordinal `{}` is not a number from 1 up", self.text_of(token)),
            );
        }
        Ok(Ordinal { value, span: token.span })
    }
}
