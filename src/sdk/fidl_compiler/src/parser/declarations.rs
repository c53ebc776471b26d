//! Declarations and the members of protocols and services.

use super::{Parsed, Parser};
use crate::ast::{
    Attributes, Composition, Declaration, DeclarationKind, MethodDeclaration, Payload,
    ProtocolDeclaration, ResourceProperty, ServiceMember,
};
use crate::lexer::TokenKind;

enum ProtocolItem {
    Compose(Composition),
    Method(Box<MethodDeclaration>),
}

impl Parser<'_> {
    pub(super) fn declaration(&mut self, attributes: Attributes) -> Parsed<Declaration> {
        let modifiers = self.modifiers(&["open", "ajar", "closed"])?;
        let word = self.peek();
        if !modifiers.is_empty() && !self.at_word("protocol") {
            return self.unexpected("`protocol`");
        }
        let (name, kind) = match self.text_of(word) {
            "const" => {
                self.next();
                let name = self.identifier()?;
                let ty = self.type_constructor()?;
                self.expect(TokenKind::Equal)?;
                let value = self.constant()?;
                (name, DeclarationKind::Const(ty, value))
            }
            "alias" => {
                self.next();
                let name = self.identifier()?;
                self.expect(TokenKind::Equal)?;
                (name, DeclarationKind::Alias(self.type_constructor()?))
            }
            "type" => {
                self.next();
                let name = self.identifier()?;
                self.expect(TokenKind::Equal)?;
                let inner = self.attributes()?;
                if !self.at_layout() {
                    return self.unexpected("a layout (for another name of a type, use `alias`)");
                }
                (name, DeclarationKind::Type(self.layout(inner)?))
            }
            "protocol" => {
                self.next();
                let name = self.identifier()?;
                let mut composed = Vec::new();
                let mut methods = Vec::new();
                for item in self.braced(Self::protocol_item)? {
                    match item {
                        ProtocolItem::Compose(composition) => composed.push(composition),
                        ProtocolItem::Method(method) => methods.push(*method),
                    }
                }
                let protocol = ProtocolDeclaration { modifiers, composed, methods };
                (name, DeclarationKind::Protocol(protocol))
            }
            "service" => {
                self.next();
                let name = self.identifier()?;
                (name, DeclarationKind::Service(self.braced(Self::service_member)?))
            }
            "resource_definition" => self.resource_definition()?,
            _ => {
                return self
                    .unexpected("a declaration (`const`, `alias`, `type`, `protocol`, `service`)");
            }
        };
        self.expect(TokenKind::Semicolon)?;
        Ok(Declaration { attributes, name, kind })
    }

    fn protocol_item(&mut self) -> Parsed<ProtocolItem> {
        let attributes = self.attributes()?;
        if self.at_word("compose") && self.peek_at(1).kind == TokenKind::Identifier {
            self.next();
            let protocol = self.compound_identifier()?;
            self.expect(TokenKind::Semicolon)?;
            return Ok(ProtocolItem::Compose(Composition { attributes, protocol }));
        }
        // `strict -> OnEvent()` and `strict Method()`.
        let modifiers = if self.peek_at(1).kind == TokenKind::Arrow {
            let word = self.identifier()?;
            if !matches!(word.text.as_str(), "strict" | "flexible") {
                self.diagnostics.error(
                    word.span,
                    format!("`{}` does not modify an event; `strict` and `flexible` do", word.text),
                );
            }
            vec![crate::ast::Modifier { word, arguments: Vec::new() }]
        } else {
            self.modifiers(&["strict", "flexible"])?
        };
        let method = if self.eat(TokenKind::Arrow).is_some() {
            let name = self.identifier()?;
            let response = Some(self.payload()?);
            let error = self.error_type()?;
            MethodDeclaration { attributes, modifiers, name, request: None, response, error }
        } else {
            let name = self.identifier()?;
            let request = Some(self.payload()?);
            let mut response = None;
            let mut error = None;
            if self.eat(TokenKind::Arrow).is_some() {
                response = Some(self.payload()?);
                error = self.error_type()?;
            }
            MethodDeclaration { attributes, modifiers, name, request, response, error }
        };
        self.expect(TokenKind::Semicolon)?;
        Ok(ProtocolItem::Method(Box::new(method)))
    }

    fn error_type(&mut self) -> Parsed<Option<crate::ast::TypeConstructor>> {
        if self.eat_word("error") { Ok(Some(self.type_constructor()?)) } else { Ok(None) }
    }

    fn payload(&mut self) -> Parsed<Payload> {
        let open = self.expect(TokenKind::OpenParen)?;
        let layout =
            if self.at(TokenKind::CloseParen) { None } else { Some(self.type_constructor()?) };
        let close = self.expect(TokenKind::CloseParen)?;
        Ok(Payload { layout, span: open.span.to(close.span) })
    }

    fn service_member(&mut self) -> Parsed<ServiceMember> {
        let attributes = self.attributes()?;
        let name = self.identifier()?;
        let ty = self.type_constructor()?;
        self.expect(TokenKind::Semicolon)?;
        Ok(ServiceMember { attributes, name, ty })
    }

    fn resource_definition(&mut self) -> Parsed<(crate::ast::Identifier, DeclarationKind)> {
        self.next();
        let name = self.identifier()?;
        self.expect(TokenKind::Colon)?;
        let underlying = self.type_constructor()?;
        let blocks = self.braced(|parser| {
            if !parser.eat_word("properties") {
                return parser.unexpected("`properties`");
            }
            let properties = parser.braced(|parser| {
                let _ = parser.attributes()?;
                let name = parser.identifier()?;
                let ty = parser.type_constructor()?;
                parser.expect(TokenKind::Semicolon)?;
                Ok(ResourceProperty { name, ty })
            })?;
            parser.expect(TokenKind::Semicolon)?;
            Ok(properties)
        })?;
        Ok((name, DeclarationKind::Resource(underlying, blocks.into_iter().flatten().collect())))
    }
}
