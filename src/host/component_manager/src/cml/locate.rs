//! Where each value of a JSON5 text stands, so that a complaint about a value can point at it. `serde_json5` parses; this only
//! finds places in a text, and bounds its nesting before a recursive parser sees it.

use super::diagnostic::Position;
use std::collections::HashMap;
use std::iter::Peekable;
use std::str::Chars;

/// The deepest nesting of a manifest. Real ones have five levels.
pub(super) const MAX_DEPTH: usize = 64;

/// Places by path, such as `use[3].protocol`.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<String, Position>);

impl Places {
    /// The place of the value at `path`, or of the nearest value around it.
    pub(super) fn find(&self, path: &str) -> Option<Position> {
        let mut path = path;
        loop {
            if let Some(position) = self.0.get(path) {
                return Some(*position);
            }
            path = path.get(..path.rfind(['.', '['])?)?;
        }
    }
}

/// Where the text nests deeper than [`MAX_DEPTH`], if it does.
pub(super) fn too_deep(text: &str) -> Option<Position> {
    let mut scanner = Scanner::new(text);
    let mut depth = 0_usize;
    while let Some(&c) = scanner.chars.peek() {
        match c {
            '{' | '[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(scanner.at);
                }
            }
            '}' | ']' => depth = depth.saturating_sub(1),
            '"' | '\'' => {
                scanner.string();
                continue;
            }
            '/' => {
                scanner.comment();
                continue;
            }
            _ => {}
        }
        scanner.bump();
    }
    None
}

/// The places of every value of a text that parsed. On one that did not, what came before the mistake.
pub(super) fn places(text: &str) -> Places {
    let mut scanner = Scanner::new(text);
    scanner.value(&mut String::new(), 0);
    scanner.places
}

struct Scanner<'a> {
    chars: Peekable<Chars<'a>>,
    at: Position,
    places: Places,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            chars: text.chars().peekable(),
            at: Position { line: 1, column: 1 },
            places: Places::default(),
        }
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    /// Passes a comment, or the lone slash of a text that is not JSON5.
    fn comment(&mut self) {
        self.bump();
        match self.chars.peek() {
            Some('/') => while self.bump().is_some_and(|c| c != '\n') {},
            Some('*') => {
                let mut last = ' ';
                self.bump();
                while let Some(c) = self.bump() {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
            }
            _ => {}
        }
    }

    fn space(&mut self) {
        while let Some(&c) = self.chars.peek() {
            match c {
                '/' => self.comment(),
                c if c.is_whitespace() || c == '\u{feff}' => {
                    self.bump();
                }
                _ => return,
            }
        }
    }

    fn string(&mut self) -> String {
        let mut text = String::new();
        let quote = self.bump();
        while let Some(c) = self.bump() {
            if c == '\\' {
                text.extend(self.bump());
            } else if Some(c) == quote {
                break;
            } else {
                text.push(c);
            }
        }
        text
    }

    fn bare(&mut self) -> String {
        let mut text = String::new();
        while let Some(&c) = self.chars.peek() {
            if c.is_whitespace()
                || matches!(c, ',' | ':' | '}' | ']' | '{' | '[' | '/' | '"' | '\'')
            {
                break;
            }
            text.extend(self.bump());
        }
        text
    }

    /// Notes the value's place under `path` and those inside it, and passes it.
    fn value(&mut self, path: &mut String, depth: usize) {
        self.space();
        self.places.0.insert(path.clone(), self.at);
        let closing = match self.chars.peek() {
            Some('{') if depth < MAX_DEPTH => '}',
            Some('[') if depth < MAX_DEPTH => ']',
            Some('"' | '\'') => {
                self.string();
                return;
            }
            _ => {
                self.bare();
                return;
            }
        };
        self.bump();
        for index in 0_usize.. {
            self.space();
            match self.chars.peek() {
                None => return,
                Some(&c) if c == closing => {
                    self.bump();
                    return;
                }
                Some(_) => {}
            }
            let length = path.len();
            let before = self.at;
            if closing == '}' {
                let key = if matches!(self.chars.peek(), Some('"' | '\'')) {
                    self.string()
                } else {
                    self.bare()
                };
                self.space();
                if self.bump() != Some(':') {
                    return;
                }
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&key);
            } else {
                path.push_str(&format!("[{index}]"));
            }
            self.value(path, depth + 1);
            path.truncate(length);
            self.space();
            if self.chars.peek() == Some(&',') {
                self.bump();
            }
            if self.at == before {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_path() {
        let text = "// a comment, with { in it\n{\n  use: [\n    { protocol: 'a' },\n    { \"protocol\": [ \"b\", /* [ */ \"c\" ] },\n  ],\n}\n";
        let places = places(text);
        assert_eq!(places.find("use[1].protocol[1]"), Some(Position { line: 5, column: 34 }));
        assert_eq!(places.find("use[0]"), Some(Position { line: 4, column: 5 }));
        assert_eq!(places.find("use[0].rights"), Some(Position { line: 4, column: 5 }));
    }

    #[test]
    fn nesting_is_bounded_and_comments_do_not_count() {
        assert_eq!(too_deep(&"[".repeat(MAX_DEPTH)), None);
        assert_eq!(
            too_deep(&"[".repeat(MAX_DEPTH + 1)),
            Some(Position { line: 1, column: MAX_DEPTH + 1 })
        );
        assert_eq!(too_deep(&format!("// {}\n'{}'", "[".repeat(99), "{".repeat(99))), None);
    }

    #[test]
    fn any_text_ends() {
        for text in ["", "{", "{a", "{a:", "[[,", "/", "/*", "'\\", "{,}", "[}", "{a:1]b", "}"] {
            let _places = places(text);
            let _depth = too_deep(text);
        }
    }
}
