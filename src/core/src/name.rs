//! What names, label keys and the like may look like. Kubernetes' rules.

/// Checks a DNS label: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
pub fn dns_label(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if name.len() > 63 {
        return Err(format!("has {} characters, at most 63 are allowed", name.len()));
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        || !edge(name.chars().next())
        || !edge(name.chars().last())
    {
        return Err(format!(
            "{name:?} is not a DNS label: lower-case letters, digits and '-', beginning and ending with a letter or digit"
        ));
    }
    Ok(())
}

/// Checks a DNS subdomain: DNS labels joined by dots, at most 253 characters.
pub fn dns_subdomain(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err(format!("has {} characters, at most 253 are allowed", name.len()));
    }
    name.split('.').try_for_each(dns_label)
}

/// Checks a key of a ConfigMap or Secret: 1 to 253 of letters, digits, `-`, `_`, `.`; neither `.` nor `..`.
pub fn config_key(key: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if key.is_empty() || key.len() > 253 || !key.chars().all(good) || key == "." || key == ".." {
        return Err(format!("{key:?} is not a valid key: 1 to 253 letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

/// Checks a label or annotation key: an optional DNS prefix and `/`, then 1 to 63 of letters, digits, `-`, `_`, `.`.
pub fn qualified(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && (prefix.is_empty() || prefix.len() > 253 || prefix.split('.').any(|label| dns_label(label).is_err()))
    {
        return Err(format!("{prefix:?}, before the '/', is not a DNS name"));
    }
    words(name, "key").and_then(|()| if name.is_empty() { Err("a key must not be empty".to_owned()) } else { Ok(()) })
}

/// Checks a label value: empty, or at most 63 of letters, digits, `-`, `_`, `.`, with a letter or digit at both ends.
pub fn label_value(value: &str) -> Result<(), String> {
    words(value, "label value")
}

fn words(text: &str, what: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    if text.len() > 63 || !text.chars().all(good) || !edge(text.chars().next()) || !edge(text.chars().last()) {
        return Err(format!(
            "{text:?} is not a valid {what}: at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends"
        ));
    }
    Ok(())
}

/// Checks the name of an environment variable: no `=`, no NUL, not empty.
pub fn variable(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("{name:?} cannot be the name of an environment variable"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_dns() {
        for good in ["a", "web-0", "0", &"x".repeat(63)] {
            assert_eq!(dns_label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "Web", "a_b", "a.b", "é", &"x".repeat(64), "a/b", "a b"] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_may_have_a_dns_prefix() {
        for good in ["app", "ostler.dev/stopped", "A_b.c-d"] {
            assert_eq!(qualified(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "ostler..dev/x"] {
            assert!(qualified(bad).is_err(), "{bad}");
        }
    }
}
