//! Sections of keys, as supervisord and systemd write them.

use crate::Error;
use crate::tree::{Entry, Node, Value};

/// A section, its keys in order; a key may be there more than once.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) line: u32,
    pub(crate) entries: Vec<Entry>,
}

fn entry(key: &str, value: &str, line: u32) -> Entry {
    Entry { key: key.to_owned(), line, node: Node { line, value: Value::Text(value.to_owned()) } }
}

fn section(line: &str, number: u32) -> Option<Section> {
    let name = line.trim().strip_prefix('[')?.split(']').next()?;
    Some(Section { name: name.to_owned(), line: number, entries: Vec::new() })
}

/// As Python's ConfigParser reads for supervisord: keys in any case, `=` or `:`, indented lines go on, a comment begins
/// a line or follows a space.
pub(crate) fn supervisord(text: &str) -> Result<Vec<Section>, Error> {
    let mut sections: Vec<Section> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let number = index as u32 + 1;
        let line = uncommented(raw);
        if line.trim().is_empty() {
            continue;
        }
        if let Some(section) = section(line, number).filter(|_| line.starts_with('[')) {
            sections.push(section);
            continue;
        }
        let Some(current) = sections.last_mut() else {
            return Err(Error::Syntax { line: number, message: "a key before the first [section]".to_owned() });
        };
        if line.starts_with([' ', '\t'])
            && let Some(Entry { node: Node { value: Value::Text(text), .. }, .. }) = current.entries.last_mut()
        {
            text.push('\n');
            text.push_str(line.trim());
            continue;
        }
        let Some(at) = line.find(['=', ':']) else {
            let message = format!("{:?} is neither a [section] nor key=value", line.trim());
            return Err(Error::Syntax { line: number, message });
        };
        let key = line[..at].trim().to_ascii_lowercase();
        current.entries.retain(|known| known.key != key);
        current.entries.push(entry(&key, line[at + 1..].trim(), number));
    }
    Ok(sections)
}

fn uncommented(line: &str) -> &str {
    if line.trim_start().starts_with([';', '#']) {
        return "";
    }
    let comment =
        line.char_indices().zip(line.chars().skip(1)).find(|((_, before), c)| before.is_whitespace() && *c == ';');
    match comment {
        Some(((at, _), _)) => &line[..at],
        None => line,
    }
}

/// As systemd reads: keys are case-sensitive and may be repeated, a backslash at the end joins lines, an empty value
/// forgets what was before it.
pub(crate) fn systemd(text: &str) -> Result<Vec<Section>, Error> {
    let mut sections: Vec<Section> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, raw)) = lines.next() {
        let number = index as u32 + 1;
        let comment = |line: &str| line.trim_start().starts_with(['#', ';']);
        if raw.trim().is_empty() || comment(raw) {
            continue;
        }
        let mut line = raw.trim().to_owned();
        while let Some(begun) = line.strip_suffix('\\') {
            line = format!("{begun} ");
            match lines.by_ref().find(|(_, next)| !comment(next)) {
                Some((_, next)) => line.push_str(next.trim()),
                None => break,
            }
        }
        if let Some(section) = section(&line, number) {
            sections.push(section);
            continue;
        }
        let (Some(current), Some((key, value))) = (sections.last_mut(), line.split_once('=')) else {
            let message = format!("{:?} is neither a [Section] nor Key=value", line.trim());
            return Err(Error::Syntax { line: number, message });
        };
        let (key, value) = (key.trim(), value.trim());
        if value.is_empty() {
            current.entries.retain(|known| known.key != key);
        } else {
            current.entries.push(entry(key, value, number));
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sections: &[Section]) -> Vec<String> {
        let text = |entry: &Entry| match &entry.node.value {
            Value::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        let line = |section: &Section| {
            section
                .entries
                .iter()
                .map(|e| format!("{}:{}:{}={}", section.name, e.line, e.key, text(e)))
                .collect::<Vec<_>>()
        };
        sections.iter().flat_map(line).collect()
    }

    #[test]
    fn supervisord_reads_comments_and_lines_that_go_on() {
        let text = "; top\n[program:x] ; the program\nCommand=a -b;c ; comment\nenvironment =\n  A=\"1\",\n  B=2\nuser: me\n#no\n";
        assert_eq!(
            shown(&supervisord(text).unwrap()),
            ["program:x:3:command=a -b;c", "program:x:4:environment=\nA=\"1\",\nB=2", "program:x:7:user=me"]
        );
        assert!(matches!(supervisord("a=b\n"), Err(Error::Syntax { line: 1, .. })));
        assert!(matches!(supervisord("[x]\nnothing\n"), Err(Error::Syntax { line: 2, .. })));
    }

    #[test]
    fn systemd_joins_lines_and_forgets_on_empty() {
        let text = "# c\n[Service]\nExecStart=/a \\\n# between\n  --b \\\n  --c\nEnvironment=A=1\nEnvironment=\nEnvironment=B=2\n";
        assert_eq!(shown(&systemd(text).unwrap()), ["Service:3:ExecStart=/a  --b  --c", "Service:9:Environment=B=2"]);
        assert!(matches!(systemd("ExecStart=/a\n"), Err(Error::Syntax { line: 1, .. })));
    }
}
