//! Text with holes.

/// The generated text.
#[derive(Debug, Default)]
pub(super) struct Output {
    text: String,
}

/// Replaces each `$name` or `${name}` of `template` by the value of that name. A `$` before anything
/// else stays.
pub(super) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut parts = template.split('$');
    out.push_str(parts.next().unwrap_or(""));
    for part in parts {
        let braced = part.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| {
            let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            part.split_at(part.find(is_end).unwrap_or(part.len()))
        });
        match values.iter().find(|(key, _)| *key == name) {
            Some((_, value)) => out.push_str(value),
            None => {
                out.push('$');
                out.push_str(name);
            }
        }
        out.push_str(rest);
    }
    out
}

impl Output {
    pub(super) fn emit(&mut self, template: &str, values: &[(&str, &str)]) {
        self.text.push_str(&fill(template, values));
    }

    /// Documentation of an item: the source's, or a plain sentence.
    pub(super) fn doc(&mut self, indent: &str, lines: &[String], plain: &str) {
        self.text.push_str(&doc_comment(indent, lines, plain));
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// Doc comment lines, with their line ends.
pub(super) fn doc_comment(indent: &str, lines: &[String], plain: &str) -> String {
    let mut out = String::new();
    let mut push = |line: &str| {
        out.push_str(format!("{indent}/// {line}").trim_end());
        out.push('\n');
    };
    if lines.iter().all(String::is_empty) {
        push(plain);
    } else {
        lines.iter().for_each(|line| push(line));
    }
    out
}
