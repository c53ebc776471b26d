//! The rules for paths.

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

/// A path that keeps to the rules, and how far into it one has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Names joined by `/`; empty for the directory itself.
    text: String,
    /// Where in `text` the next name begins.
    next: usize,
    directory: bool,
}

impl Path {
    /// The directory itself.
    pub fn dot() -> Path {
        Path { text: String::new(), next: 0, directory: true }
    }

    /// Checks a path as it comes from a client.
    ///
    /// # Errors
    /// `BAD_PATH` if it is empty or too long, or has a name that [`validate_name`] does not let through. Only as a whole may
    /// it be `.`.
    pub fn validate_and_split(path: &str) -> Result<Path, Status> {
        if path.is_empty() || path.len() as u64 > fio::MAX_PATH_LENGTH {
            return Err(Status::BAD_PATH);
        }
        let relative = path.strip_prefix('/').unwrap_or(path);
        if relative == "." || relative.is_empty() {
            return Ok(Path::dot());
        }
        let (text, directory) = match relative.strip_suffix('/') {
            Some(text) => (text, true),
            None => (relative, false),
        };
        for name in text.split('/') {
            validate_name(name).map_err(|_| Status::BAD_PATH)?;
        }
        Ok(Path { text: text.to_owned(), next: 0, directory })
    }

    /// Whether no name is left, so that the directory reached is what is meant.
    pub fn is_empty(&self) -> bool {
        self.next >= self.text.len()
    }

    /// Whether exactly one name is left.
    pub fn is_last(&self) -> bool {
        !self.is_empty() && !self.text[self.next..].contains('/')
    }

    /// Whether the path says that it is a directory's.
    pub fn is_directory(&self) -> bool {
        self.directory
    }

    /// The next name, which is then behind.
    pub fn pop(&mut self) -> Option<&str> {
        let rest = self.text.get(self.next..).filter(|rest| !rest.is_empty())?;
        let length = rest.find('/').unwrap_or(rest.len());
        self.next += length + 1;
        Some(&rest[..length])
    }

    /// What is left, as it can be sent to a server: `.` if nothing is.
    pub fn remainder(&self) -> String {
        match self.text.get(self.next..) {
            None | Some("") => ".".to_owned(),
            Some(rest) if self.directory => format!("{rest}/"),
            Some(rest) => rest.to_owned(),
        }
    }
}

/// Checks one name.
///
/// # Errors
/// `INVALID_ARGS` if it is empty, `.` or `..`, too long, or has a `/` or a NUL in it.
pub fn validate_name(name: &str) -> Result<(), Status> {
    let valid = !matches!(name, "" | "." | "..")
        && name.len() as u64 <= fio::MAX_NAME_LENGTH
        && !name.contains(['/', '\0']);
    if valid { Ok(()) } else { Err(Status::INVALID_ARGS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Vec<String> {
        let mut path = Path::validate_and_split(path).expect("the path keeps to the rules");
        std::iter::from_fn(|| path.pop().map(str::to_owned)).collect()
    }

    #[test]
    fn names_come_in_order() {
        assert_eq!(names("a/b/c"), ["a", "b", "c"]);
        assert_eq!(names("/a/b/"), ["a", "b"]);
        assert_eq!(names("..a/b.."), ["..a", "b.."]);
        for itself in [".", "/", "/."] {
            assert!(names(itself).is_empty());
        }
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let long_name = "n".repeat(256);
        let long_path = "p/".repeat(2048);
        let bad = ["", "..", "a/..", "../a", "a/./b", "./a", "a//b", "//", "//a", "a//", "a\0b"];
        for path in bad.into_iter().chain([long_name.as_str(), long_path.as_str()]) {
            assert_eq!(Path::validate_and_split(path), Err(Status::BAD_PATH), "{path:?}");
        }
        assert!(Path::validate_and_split(&"n".repeat(255)).is_ok());
    }

    #[test]
    fn the_remainder_is_a_path_again() {
        let mut path = Path::validate_and_split("a/b/").expect("a path");
        assert!(path.is_directory() && !path.is_last());
        assert_eq!(path.remainder(), "a/b/");
        path.pop();
        assert!(path.is_last());
        assert_eq!(path.remainder(), "b/");
        path.pop();
        assert!(path.is_empty());
        assert_eq!(path.remainder(), ".");
        assert_eq!(path.pop(), None);
    }
}
