//! Conversions between the cases of names.

/// Splits a name in any case at underscores and where its case changes.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let chars: Vec<char> = name.chars().collect();
    let mut word = String::new();
    for (i, c) in chars.iter().copied().enumerate() {
        if c == '_' || c == '.' {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        let previous = i.checked_sub(1).and_then(|i| chars.get(i)).copied();
        let next_is_lower = chars.get(i + 1).is_some_and(char::is_ascii_lowercase);
        let starts = c.is_ascii_uppercase()
            && previous.is_some_and(|p| {
                p.is_ascii_lowercase()
                    || p.is_ascii_digit()
                    || (p.is_ascii_uppercase() && next_is_lower)
            });
        if starts && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `GetHTTPUrl` and `get_http_url` to `get_http_url`. Names that are equal in this form clash.
pub fn lower_snake_case(name: &str) -> String {
    words(name).join("_").to_ascii_lowercase()
}

/// To `UPPER_SNAKE_CASE`.
pub fn upper_snake_case(name: &str) -> String {
    words(name).join("_").to_ascii_uppercase()
}

/// To `UpperCamelCase`.
pub fn upper_camel_case(name: &str) -> String {
    let mut out = String::new();
    for word in words(name) {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.push(first.to_ascii_uppercase());
            out.push_str(&chars.as_str().to_ascii_lowercase());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_convert_between_cases() {
        for (name, snake, camel) in [
            ("GetHTTPUrl", "get_http_url", "GetHttpUrl"),
            ("get_mac_address", "get_mac_address", "GetMacAddress"),
            ("READ_ONLY", "read_only", "ReadOnly"),
            ("Guest_Launch_Response", "guest_launch_response", "GuestLaunchResponse"),
            ("ipv4Address", "ipv4_address", "Ipv4Address"),
            ("X", "x", "X"),
        ] {
            assert_eq!(lower_snake_case(name), snake);
            assert_eq!(upper_camel_case(name), camel);
            assert_eq!(upper_snake_case(name), snake.to_uppercase());
        }
    }
}
