//! Tokens to a syntax tree. A mistake inside a member or a declaration is reported and skipped, so
//! that one run shows all of them.

mod declarations;
mod types;

use crate::ast::{Attributes, CompoundIdentifier, File, Identifier, Using};
use crate::diagnostic::Diagnostics;
use crate::lexer::{Token, TokenKind, lex};
use crate::source::{FileId, SourceFile, Span};

/// Layouts inside layouts deeper than this are refused, so that no source overflows the stack.
const MAX_NESTING: usize = 64;

/// A mistake was reported; the caller skips to where it can go on.
struct Reported;

type Parsed<T> = Result<T, Reported>;

struct Parser<'a> {
    file: FileId,
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
    diagnostics: &'a mut Diagnostics,
}

/// Parses a file; `None` if it does not even say which library it is of.
pub fn parse(id: FileId, source: &SourceFile, diagnostics: &mut Diagnostics) -> Option<File> {
    let tokens = lex(id, source, diagnostics);
    let mut parser =
        Parser { file: id, text: source.text(), tokens, at: 0, nesting: 0, diagnostics };
    parser.file().ok()
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token {
        self.peek_at(0)
    }

    fn peek_at(&self, ahead: usize) -> Token {
        // The last token is End, and nothing goes past it.
        self.tokens.get(self.at + ahead).or(self.tokens.last()).copied().unwrap_or(Token {
            kind: TokenKind::End,
            span: Span { file: self.file, start: 0, end: 0 },
        })
    }

    fn text_of(&self, token: Token) -> &'a str {
        self.text.get(token.span.start as usize..token.span.end as usize).unwrap_or("")
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        if token.kind != TokenKind::End {
            self.at += 1;
        }
        token
    }

    fn previous_span(&self) -> Span {
        let at = self.at.saturating_sub(1);
        self.tokens.get(at).map_or(self.peek().span, |token| token.span)
    }

    fn at(&self, kind: TokenKind) -> bool {
        self.peek().kind == kind
    }

    fn at_word(&self, word: &str) -> bool {
        let token = self.peek();
        token.kind == TokenKind::Identifier && self.text_of(token) == word
    }

    fn eat(&mut self, kind: TokenKind) -> Option<Token> {
        self.at(kind).then(|| self.next())
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.at_word(word);
        if found {
            self.next();
        }
        found
    }

    fn unexpected<T>(&mut self, expected: &str) -> Parsed<T> {
        let token = self.peek();
        let found = match token.kind {
            TokenKind::Identifier | TokenKind::Number | TokenKind::String => {
                format!("`{}`", self.text_of(token))
            }
            kind => kind.describe().to_owned(),
        };
        // After a line that lacks its `;` the place to look at is the end of that line.
        let span = if expected == "`;`" {
            let end = self.previous_span().end;
            Span { file: self.file, start: end.saturating_sub(1), end }
        } else {
            token.span
        };
        self.diagnostics.error(span, format!("expected {expected}, found {found}"));
        Err(Reported)
    }

    fn expect(&mut self, kind: TokenKind) -> Parsed<Token> {
        match self.eat(kind) {
            Some(token) => Ok(token),
            None => self.unexpected(kind.describe()),
        }
    }

    fn identifier(&mut self) -> Parsed<Identifier> {
        let token = self.expect(TokenKind::Identifier)?;
        Ok(Identifier { text: self.text_of(token).to_owned(), span: token.span })
    }

    fn compound_identifier(&mut self) -> Parsed<CompoundIdentifier> {
        let mut parts = vec![self.identifier()?];
        while self.eat(TokenKind::Dot).is_some() {
            parts.push(self.identifier()?);
        }
        let span = parts[0].span.to(self.previous_span());
        Ok(CompoundIdentifier { parts, span })
    }

    /// Skips to after the next `;` of this nesting, or to its closing brace.
    fn skip_statement(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.peek().kind {
                TokenKind::End => return,
                TokenKind::OpenBrace | TokenKind::OpenParen => depth += 1,
                TokenKind::CloseBrace if depth == 0 => return,
                TokenKind::CloseBrace | TokenKind::CloseParen => depth = depth.saturating_sub(1),
                TokenKind::Semicolon if depth == 0 => {
                    self.next();
                    return;
                }
                _ => {}
            }
            self.next();
        }
    }

    /// Parses `item`s until the closing brace, which is eaten; a bad item is skipped.
    fn braced<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect(TokenKind::OpenBrace)?;
        let mut items = Vec::new();
        while !self.at(TokenKind::CloseBrace) && !self.at(TokenKind::End) {
            let before = self.at;
            match item(self) {
                Ok(parsed) => items.push(parsed),
                Err(Reported) => {
                    self.skip_statement();
                    if self.at == before {
                        break;
                    }
                }
            }
        }
        self.expect(TokenKind::CloseBrace)?;
        Ok(items)
    }

    fn file(&mut self) -> Parsed<File> {
        let attributes = self.attributes()?;
        if !self.eat_word("library") {
            return self.unexpected("`library`");
        }
        let library = self.compound_identifier()?;
        if self.expect(TokenKind::Semicolon).is_err() {
            self.skip_statement();
        }
        let mut file = File {
            id: self.file,
            attributes,
            library,
            usings: Vec::new(),
            declarations: Vec::new(),
        };
        while !self.at(TokenKind::End) {
            let before = self.at;
            if self.file_item(&mut file).is_err() {
                self.skip_statement();
                // A stray closing brace at top level ends nothing.
                if self.at(TokenKind::CloseBrace) {
                    self.next();
                    self.eat(TokenKind::Semicolon);
                }
                if self.at == before {
                    self.next();
                }
            }
        }
        Ok(file)
    }

    fn file_item(&mut self, file: &mut File) -> Parsed<()> {
        let attributes = self.attributes()?;
        if self.at_word("using") {
            let using = self.using(&attributes)?;
            if !file.declarations.is_empty() {
                self.diagnostics
                    .error(using.library.span, "`using` must come before every declaration");
            }
            file.usings.push(using);
        } else {
            let declaration = self.declaration(attributes)?;
            file.declarations.push(declaration);
        }
        Ok(())
    }

    fn using(&mut self, attributes: &Attributes) -> Parsed<Using> {
        let word = self.next();
        if !attributes.doc.is_empty() {
            self.diagnostics.error(word.span, "`using` cannot be documented");
        }
        let library = self.compound_identifier()?;
        let alias = if self.eat_word("as") { Some(self.identifier()?) } else { None };
        self.expect(TokenKind::Semicolon)?;
        Ok(Using { library, alias })
    }
}
