//! Older spellings of the command line, brought to today's before it is parsed.

/// Whether and how a program reads what is printed.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Text for a person.
    Text,
    /// One JSON value for a program.
    Json,
}

/// Takes `--machine FORMAT` out of the words, wherever it stands before a lone `--`.
///
/// # Errors
/// Says which formats there are.
pub(crate) fn take_output(words: &mut Vec<String>) -> Result<Output, String> {
    let mut output = Output::Text;
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut index = 0;
    let mut limit = end;
    while index < limit {
        let format = if words[index] == "--machine" {
            if index + 1 >= limit {
                return Err("--machine needs a format: json".to_owned());
            }
            limit -= 2;
            words.drain(index..index + 2).nth(1)
        } else if words[index].starts_with("--machine=") {
            limit -= 1;
            words.remove(index).split_once('=').map(|(_, format)| format.to_owned())
        } else {
            index += 1;
            continue;
        };
        output = match format.as_deref() {
            Some("json") => Output::Json,
            other => return Err(format!("unknown --machine format {other:?}; there is json")),
        };
    }
    Ok(output)
}

/// Rewrites a command of an older Fuchsia.
///
/// `balloon TYPE PAGES`, `balloon-stats TYPE`, `serial TYPE`, `socat --guest-type TYPE --port PORT` and `socat-listen
/// --guest-type TYPE --host-port PORT` are the flat forms that were replaced by nested ones.
pub(crate) fn modernize(words: &mut Vec<String>) {
    let is_word = |word: &String| !word.starts_with('-');
    match words.first().map(String::as_str) {
        Some("balloon")
            if words.len() == 3
                && words[1..].iter().all(is_word)
                && !matches!(words[1].as_str(), "set" | "stats") =>
        {
            words.insert(1, "set".to_owned());
        }
        Some("balloon-stats") => replace_first(words, &["balloon", "stats"]),
        Some("serial") => {
            replace_first(words, &["attach"]);
            words.push("--serial".to_owned());
        }
        Some("socat") if has_option(words, "--guest-type") => {
            replace_first(words, &["socat", "connect"]);
            positional(words, &["--guest-type", "--port"]);
        }
        Some("socat-listen") => {
            replace_first(words, &["socat", "listen"]);
            positional(words, &["--guest-type", "--host-port"]);
        }
        _ => {}
    }
}

fn replace_first(words: &mut Vec<String>, with: &[&str]) {
    words.splice(0..1, with.iter().map(|word| (*word).to_owned()));
}

fn has_option(words: &[String], name: &str) -> bool {
    words.iter().any(|word| word.split('=').next() == Some(name))
}

/// Moves the values of options to the end, in this order, without their names.
fn positional(words: &mut Vec<String>, names: &[&str]) {
    let mut values = Vec::new();
    for name in names {
        let Some(index) = words.iter().position(|word| word.split('=').next() == Some(name)) else {
            continue;
        };
        let word = words.remove(index);
        match word.split_once('=') {
            Some((_, value)) => values.push(value.to_owned()),
            None if index < words.len() => values.push(words.remove(index)),
            None => {}
        }
    }
    words.extend(values);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn machine_output_is_found_anywhere() {
        for line in ["--machine json list", "list --machine json", "list --machine=json debian"] {
            let mut line = words(line);
            assert_eq!(take_output(&mut line), Ok(Output::Json));
            assert_eq!(line[0], "list");
            assert!(!line.iter().any(|word| word.contains("machine")), "{line:?}");
        }
        assert_eq!(take_output(&mut words("list")), Ok(Output::Text));
        assert!(take_output(&mut words("list --machine")).is_err());
        assert!(take_output(&mut words("list --machine xml")).is_err());
        assert_eq!(take_output(&mut words("x -- --machine json")), Ok(Output::Text));
    }

    #[test]
    fn flat_forms_become_nested_ones() {
        for (old, new) in [
            ("balloon debian 100", "balloon set debian 100"),
            ("balloon set debian 100", "balloon set debian 100"),
            ("balloon stats debian", "balloon stats debian"),
            ("balloon-stats debian", "balloon stats debian"),
            ("serial zircon", "attach zircon --serial"),
            ("socat --guest-type debian --port 5", "socat connect debian 5"),
            ("socat --port=5 --guest-type=debian", "socat connect debian 5"),
            ("socat connect debian 5", "socat connect debian 5"),
            ("socat-listen --host-port 7 --guest-type debian", "socat listen debian 7"),
            ("balloon --help", "balloon --help"),
        ] {
            let mut line = words(old);
            modernize(&mut line);
            assert_eq!(line, words(new), "{old}");
        }
    }
}
