//! Command lines: words, shells, and `$`.
//!
//! A manifest has a list of words and no shell, and gives `$(NAME)` and `$$` a meaning. A command line that does without
//! a shell becomes words; any other is handed to the shell it was written for.

/// Variables that every process has without being told.
const ALWAYS: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD"];

/// Words that only a shell understands, at the beginning of a command.
const BUILTIN: [&str; 22] = [
    "cd", ".", "source", "export", "set", "unset", "eval", "ulimit", "umask", "wait", "trap", "alias", "if", "while",
    "until", "for", "case", "time", "function", "!", "read", "exit",
];

/// Text as it has to be in `command`, `args` and values of `env`, so that it comes out as it is.
pub(crate) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        rest = tail.trim_start_matches('$');
        let dollars = &tail[..tail.len() - rest.len()];
        out.push_str(dollars);
        // One alone means itself, unless a name in parentheses follows.
        if dollars.len() > 1 || rest.starts_with('(') {
            out.push_str(dollars);
        }
    }
    out.push_str(rest);
    out
}

/// Words as a POSIX shell or Python's shlex would cut them; nothing is expanded. `None`: a quote is not closed.
pub(crate) fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            '\n' => {}
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => word.get_or_insert_default().push('\\'),
            },
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// The words of a command line that means the same without a shell.
fn without_shell(line: &str) -> Option<Vec<String>> {
    let mut quote = None;
    let mut previous = ' ';
    let mut chars = line.trim().chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('"'), '$' | '`') => return None,
            (Some('"') | None, '\\') => {
                // An escape of a line break, or at the end, is better left to the shell.
                if chars.next().is_none_or(|next| next == '\n') {
                    return None;
                }
            }
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | ']' | '{' | '}' | '\n') => {
                return None;
            }
            (None, '~' | '#') if previous.is_whitespace() => return None,
            (Some(_) | None, _) => {}
        }
        previous = c;
    }
    let mut words = split(line.trim())?;
    if words.first().is_some_and(|word| word == "exec") && words.len() > 1 {
        words.remove(0);
    }
    let first = words.first()?;
    let shell = first.is_empty() || first.contains('=') || BUILTIN.contains(&first.as_str());
    (!shell).then_some(words)
}

/// The command for a line written for a shell.
pub(crate) fn for_shell(line: &str, shell: &[String]) -> Vec<String> {
    without_shell(line).unwrap_or_else(|| {
        let mut words = shell.to_vec();
        words.push(line.trim_end().to_owned());
        words
    })
}

/// Names of variables in capitals that a shell would look up in a text, each once. Those which every process has, and
/// those which the text itself sets, are left out.
pub(crate) fn variables(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let escaped = rest[..at].ends_with('\\');
        rest = rest[at + 1..].trim_start_matches('{');
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_').collect();
        // A small letter goes on: then it is a variable of the script itself.
        let whole = !rest[name.len()..].starts_with(|c: char| c.is_ascii_lowercase());
        if !escaped
            && whole
            && name.starts_with(|c: char| !c.is_ascii_digit())
            && name.contains(|c: char| c.is_ascii_uppercase())
            && !ALWAYS.contains(&name.as_str())
            && !text.contains(&format!("{name}="))
            && !found.contains(&name)
        {
            found.push(name);
        }
    }
    found
}

/// Whether every process has this variable.
pub(crate) fn is_always_there(name: &str) -> bool {
    ALWAYS.contains(&name)
}

/// Replaces `$NAME` and `${NAME}` in a text by what `replace` says; `$$` becomes a dollar sign where `doubled` says so.
/// What is left is literal.
pub(crate) fn expand(text: &str, doubled: bool, mut replace: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if doubled && let Some(tail) = rest.strip_prefix('$') {
            plain.push('$');
            rest = tail;
            continue;
        }
        let name_end = |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let named = match rest.strip_prefix('{') {
            Some(inner) => {
                inner.find('}').filter(|end| name_end(inner) == *end).map(|end| (&inner[..end], &inner[end + 1..]))
            }
            None => Some(rest.split_at(name_end(rest))),
        };
        match named {
            Some((name, tail)) if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                out.push_str(&literal(&std::mem::take(&mut plain)));
                out.push_str(&replace(name));
                rest = tail;
            }
            _ => plain.push('$'),
        }
    }
    plain.push_str(rest);
    out.push_str(&literal(&plain));
    out
}

/// A word as a shell takes it for itself.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str) -> Vec<String> {
        for_shell(line, &["sh".to_owned(), "-c".to_owned()])
    }

    #[test]
    fn only_what_needs_a_shell_gets_one() {
        assert_eq!(sh("bundle exec puma -C 'config/a b.rb'"), ["bundle", "exec", "puma", "-C", "config/a b.rb"]);
        assert_eq!(sh("exec node server.js"), ["node", "server.js"]);
        assert_eq!(sh(r#"echo "a \"b\"" c\ d"#), ["echo", "a \"b\"", "c d"]);
        assert_eq!(sh("curl http://x/~me/#top a=b"), ["curl", "http://x/~me/#top", "a=b"]);
        for line in [
            "a | b",
            "A=1 b",
            "echo $X",
            "echo \"$X\"",
            "ls *.c",
            "cd x",
            "a && b",
            "echo `x`",
            "(a)",
            "a > b",
            "cat ~/x",
            "if true; then x; fi",
            "a # b",
            "unclosed 'quote",
        ] {
            assert_eq!(sh(line), ["sh", "-c", line]);
        }
        assert_eq!(sh("echo '$X'"), ["echo", "$X"]);
    }

    #[test]
    fn literal_text_comes_out_as_it_was() {
        for text in ["$", "$$", "$$$", "$(A)", "$$(A)", "a$b", "${A}", "$x$$y$(z)$", "$$$$", "no"] {
            assert_eq!(ostler_core::expand::expand(&literal(text), |_| Some("EXPANDED".to_owned())), text);
        }
        assert_eq!(literal("${HOME} costs 5$"), "${HOME} costs 5$");
    }

    #[test]
    fn variables_from_outside_are_found() {
        let text = "if [ \"$RUN\" != x ]; then B=1 c ${PORT:-1} $B $HOME $i $Ab \\$NOT $1 $RUN; fi";
        assert_eq!(variables(text), ["RUN", "PORT"]);
    }

    #[test]
    fn references_are_replaced_and_the_rest_stays() {
        let expanded = |text: &str, doubled| expand(text, doubled, |name| format!("<{name}>"));
        assert_eq!(expanded("$A/${B}-$(C)$$ ${d", false), "<A>/<B>-$$(C)$$$$ ${d");
        assert_eq!(expanded("$$A$$ ${B:-x}", true), "$A$ ${B:-x}");
    }

    #[test]
    fn quotes_survive_a_shell() {
        assert_eq!(quote("/usr/bin/x"), "/usr/bin/x");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(split(&quote("a $b 'c'")), Some(vec!["a $b 'c'".to_owned()]));
    }
}
