//! Source text to tokens.

use crate::diagnostic::Diagnostics;
use crate::source::{FileId, SourceFile, Span};

/// What a token is. FIDL has no reserved words: `library`, `struct` and the like are identifiers
/// that mean something where the grammar expects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A name or a contextual keyword.
    Identifier,
    /// A number, with its sign if it has one.
    Number,
    /// A string with its quotes.
    String,
    /// One line of `///` documentation.
    DocComment,
    /// `(`
    OpenParen,
    /// `)`
    CloseParen,
    /// `{`
    OpenBrace,
    /// `}`
    CloseBrace,
    /// `<`
    OpenAngle,
    /// `>`
    CloseAngle,
    /// `@`
    At,
    /// `.`
    Dot,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// `:`
    Colon,
    /// `=`
    Equal,
    /// `|`
    Pipe,
    /// `&`
    Ampersand,
    /// `->`
    Arrow,
    /// The end of the file.
    End,
}

impl TokenKind {
    /// How diagnostics call a token of this kind.
    pub fn describe(self) -> &'static str {
        match self {
            TokenKind::Identifier => "an identifier",
            TokenKind::Number => "a number",
            TokenKind::String => "a string",
            TokenKind::DocComment => "a doc comment",
            TokenKind::OpenParen => "`(`",
            TokenKind::CloseParen => "`)`",
            TokenKind::OpenBrace => "`{`",
            TokenKind::CloseBrace => "`}`",
            TokenKind::OpenAngle => "`<`",
            TokenKind::CloseAngle => "`>`",
            TokenKind::At => "`@`",
            TokenKind::Dot => "`.`",
            TokenKind::Comma => "`,`",
            TokenKind::Semicolon => "`;`",
            TokenKind::Colon => "`:`",
            TokenKind::Equal => "`=`",
            TokenKind::Pipe => "`|`",
            TokenKind::Ampersand => "`&`",
            TokenKind::Arrow => "`->`",
            TokenKind::End => "the end of the file",
        }
    }
}

/// A token and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it is.
    pub span: Span,
}

struct Lexer<'a> {
    file: FileId,
    text: &'a str,
    at: usize,
    tokens: Vec<Token>,
    diagnostics: &'a mut Diagnostics,
}

/// Splits a file into tokens, the last of which is [`TokenKind::End`]. Bytes that are no token are
/// reported and left out.
pub fn lex(file: FileId, source: &SourceFile, diagnostics: &mut Diagnostics) -> Vec<Token> {
    let mut lexer = Lexer { file, text: source.text(), at: 0, tokens: Vec::new(), diagnostics };
    lexer.run();
    lexer.tokens
}

impl Lexer<'_> {
    fn span(&self, start: usize) -> Span {
        Span { file: self.file, start: start as u32, end: self.at as u32 }
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !accept(c)).unwrap_or(rest.len());
    }

    fn push(&mut self, kind: TokenKind, start: usize) {
        let span = self.span(start);
        self.tokens.push(Token { kind, span });
    }

    fn run(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
            let start = self.at;
            let Some(first) = self.rest().chars().next() else {
                self.push(TokenKind::End, start);
                return;
            };
            match first {
                '/' if self.rest().starts_with("//") => self.comment(start),
                'a'..='z' | 'A'..='Z' | '_' => self.identifier(start),
                '0'..='9' => self.number(start),
                '-' if self.rest().starts_with("->") => {
                    self.at += 2;
                    self.push(TokenKind::Arrow, start);
                }
                '-' => self.number(start),
                '"' => self.string(start),
                _ => self.punctuation(start, first),
            }
        }
    }

    fn comment(&mut self, start: usize) {
        let rest = self.rest();
        // `////` separates sections; only exactly three slashes document.
        let is_doc = rest.starts_with("///") && !rest.starts_with("////");
        self.take_while(|c| c != '\n');
        if is_doc {
            self.push(TokenKind::DocComment, start);
        }
    }

    fn identifier(&mut self, start: usize) {
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        let text = self.text.get(start..self.at).unwrap_or("");
        if text.starts_with('_') || text.ends_with('_') {
            let span = self.span(start);
            self.diagnostics
                .error(span, format!("`{text}` is not a name: names start with a letter and end with a letter or digit"));
        }
        self.push(TokenKind::Identifier, start);
    }

    fn number(&mut self, start: usize) {
        self.at += 1;
        loop {
            self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
            // The sign of an exponent, as in 1.5e-3, but not the `-` of another token.
            let text = self.text.get(start..self.at).unwrap_or("");
            let exponent = text.ends_with(['e', 'E']) && !text.contains(['x', 'X']);
            if exponent && self.rest().starts_with(['-', '+']) {
                self.at += 1;
            } else {
                break;
            }
        }
        self.push(TokenKind::Number, start);
    }

    fn string(&mut self, start: usize) {
        self.at += 1;
        loop {
            let mut rest = self.rest().chars();
            match rest.next() {
                Some('"') => {
                    self.at += 1;
                    break;
                }
                Some('\\') => {
                    self.at += 1 + rest.next().map_or(0, char::len_utf8);
                }
                None | Some('\n') => {
                    let span = self.span(start);
                    self.diagnostics.error(span, "this string is not closed");
                    break;
                }
                Some(c) => self.at += c.len_utf8(),
            }
        }
        self.push(TokenKind::String, start);
    }

    fn punctuation(&mut self, start: usize, first: char) {
        self.at += first.len_utf8();
        let kind = match first {
            '(' => TokenKind::OpenParen,
            ')' => TokenKind::CloseParen,
            '{' => TokenKind::OpenBrace,
            '}' => TokenKind::CloseBrace,
            '<' => TokenKind::OpenAngle,
            '>' => TokenKind::CloseAngle,
            '@' => TokenKind::At,
            '.' => TokenKind::Dot,
            ',' => TokenKind::Comma,
            ';' => TokenKind::Semicolon,
            ':' => TokenKind::Colon,
            '=' => TokenKind::Equal,
            '|' => TokenKind::Pipe,
            '&' => TokenKind::Ampersand,
            other => {
                let span = self.span(start);
                self.diagnostics
                    .error(span, format!("unexpected character `{}`", other.escape_debug()));
                return;
            }
        };
        self.push(kind, start);
    }
}
