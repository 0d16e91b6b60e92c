//! `$(NAME)` in commands and environment values, with Kubernetes' rules.

/// Replaces `$(NAME)` by what `lookup` says; `$$` becomes `$`; a reference that nobody knows stays as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    if !text.contains('$') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(tail) = rest.strip_prefix("$$") {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')'))
            && let Some(value) = lookup(name)
        {
            out.push_str(&value);
            rest = tail;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn references_follow_kubernetes() {
        let lookup = |name: &str| (name == "PORT").then(|| "8080".to_owned());
        for (text, expected) in [
            ("--port=$(PORT)", "--port=8080"),
            ("$(PORT)$(PORT)", "80808080"),
            ("$$(PORT)", "$(PORT)"),
            ("$(NOPE)", "$(NOPE)"),
            ("$PORT", "$PORT"),
            ("$(PORT", "$(PORT"),
            ("a$", "a$"),
            ("$$", "$"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
