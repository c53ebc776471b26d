//! What the compiler tells a person: a message, the place it is about, and places that explain it.

use crate::source::{SourceMap, Span};
use std::fmt::Write as _;

/// One problem in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The place the problem is at.
    pub span: Span,
    /// What is wrong, one line, without a final full stop.
    pub message: String,
    /// Other places that help to understand it, e.g. the first of two equal names.
    pub notes: Vec<(Span, String)>,
}

impl Diagnostic {
    /// The diagnostic as text: `file:line:column: error: message`, the source line and a caret
    /// under the place, then the notes in the same form.
    pub fn render(&self, sources: &SourceMap) -> String {
        let mut out = String::new();
        render_one(&mut out, sources, self.span, "error", &self.message);
        for (span, note) in &self.notes {
            render_one(&mut out, sources, *span, "note", note);
        }
        out
    }
}

fn render_one(out: &mut String, sources: &SourceMap, span: Span, kind: &str, message: &str) {
    let file = sources.file(span.file);
    let at = file.position(span.start);
    let line = file.line(at.line);
    // Tabs stay tabs so that the caret is under its place whatever the tab width is.
    let indent: String =
        line.chars().take(at.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let rest = line.chars().count().saturating_sub(at.column - 1).max(1);
    let width = sources.text(span).chars().take_while(|c| *c != '\n').count().clamp(1, rest);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}:{at}: {kind}: {message}", file.name());
    let _ = writeln!(out, "{line}");
    let _ = writeln!(out, "{indent}^{}", "~".repeat(width - 1));
}

/// The problems of a run, in the order they were found.
#[derive(Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Records a problem.
    pub fn error(&mut self, span: Span, message: impl Into<String>) {
        self.list.push(Diagnostic { span, message: message.into(), notes: Vec::new() });
    }

    /// Records a problem and a place that explains it.
    pub fn error_with_note(
        &mut self,
        span: Span,
        message: impl Into<String>,
        note_span: Span,
        note: impl Into<String>,
    ) {
        self.list.push(Diagnostic {
            span,
            message: message.into(),
            notes: vec![(note_span, note.into())],
        });
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The problems in source order, each once.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.list.sort_by(|a, b| (a.span, &a.message).cmp(&(b.span, &b.message)));
        self.list.dedup();
        self.list
    }
}
