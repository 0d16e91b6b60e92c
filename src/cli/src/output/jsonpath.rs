//! kubectl's JSONPath: text with `{expressions}` in it.
//!
//! Understood: `.field`, `['field']`, `..field`, `[n]`, `[-1]`, `[a:b]`, `[0,2]`, `[*]`, `.*`, filters
//! `[?(@.a=="b")]` (also `!=`, `<`, `<=`, `>`, `>=`, or just that something exists), `{range …}…{end}`, and quoted text
//! `{"\n"}`. Several results are separated by a space.

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Path(Path),
    Range(Path, Vec<Node>),
}

/// Steps from the current object (or from the root, after `$`).
#[derive(Debug, Clone, PartialEq)]
struct Path {
    root: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// The field at any depth.
    Descend(String),
    All,
    Index(Vec<i64>),
    Slice(Option<i64>, Option<i64>),
    Fields(Vec<String>),
    Filter(Path, Option<(Compare, Value)>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Template {
    /// Reads a template; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Template, String> {
        let mut parser = Parser { text, at: 0 };
        let nodes = parser.nodes(false)?;
        Ok(Template { nodes })
    }

    /// Reads a single path, with or without its braces: `{.status.phase}`, `.status.phase`, `status.phase`.
    pub(crate) fn parse_path(text: &str) -> Result<Template, String> {
        let text = text.trim();
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let inner = if inner.starts_with(['.', '[', '$', '@']) { inner.to_owned() } else { format!(".{inner}") };
        let mut parser = Parser { text: &inner, at: 0 };
        let path = parser.path()?;
        parser.spaces();
        if parser.at < inner.len() {
            return Err(format!("unexpected \"{}\" in the path", &inner[parser.at..]));
        }
        Ok(Template { nodes: vec![Node::Path(path)] })
    }

    /// The template filled in.
    pub(crate) fn render(&self, root: &Value) -> String {
        let mut out = String::new();
        render(&self.nodes, root, root, &mut out);
        out
    }

    /// The values of a template that is one path.
    pub(crate) fn find<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        match self.nodes.as_slice() {
            [Node::Path(path)] => path.find(root, root),
            _ => Vec::new(),
        }
    }
}

fn render(nodes: &[Node], root: &Value, current: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                let texts: Vec<String> = path.find(root, current).into_iter().map(text).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(path, body) => {
                for item in path.find(root, current) {
                    render(body, root, item, out);
                }
            }
        }
    }
}

/// A value as kubectl prints it: strings bare, the rest as JSON.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

impl Path {
    fn find<'v>(&self, root: &'v Value, current: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![if self.root { root } else { current }];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.apply(root, value)).collect();
        }
        found
    }
}

impl Step {
    fn apply<'v>(&self, root: &'v Value, value: &'v Value) -> Vec<&'v Value> {
        match self {
            Step::Field(name) => value.get(name).into_iter().collect(),
            Step::Descend(name) => {
                let mut found = Vec::new();
                descend(name, value, &mut found);
                found
            }
            Step::All => children(value),
            Step::Index(indexes) => match value.as_array() {
                Some(items) => indexes.iter().filter_map(|index| at(items, *index)).collect(),
                None => Vec::new(),
            },
            Step::Slice(from, to) => match value.as_array() {
                Some(items) => {
                    let bound = |index: i64| {
                        let length = items.len() as i64;
                        (if index < 0 { length + index } else { index }).clamp(0, length) as usize
                    };
                    let (from, to) = (from.map_or(0, bound), to.map_or(items.len(), bound));
                    items.get(from..to).unwrap_or_default().iter().collect()
                }
                None => Vec::new(),
            },
            Step::Fields(names) => names.iter().filter_map(|name| value.get(name)).collect(),
            Step::Filter(path, test) => children(value)
                .into_iter()
                .filter(|item| {
                    let found = path.find(root, item);
                    match test {
                        None => !found.is_empty(),
                        Some((compare, wanted)) => found.iter().any(|value| compare.holds(value, wanted)),
                    }
                })
                .collect(),
        }
    }
}

fn at(items: &[Value], index: i64) -> Option<&Value> {
    let index = if index < 0 { items.len() as i64 + index } else { index };
    items.get(usize::try_from(index).ok()?)
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn descend<'v>(name: &str, value: &'v Value, found: &mut Vec<&'v Value>) {
    found.extend(value.get(name));
    for child in children(value) {
        descend(name, child, found);
    }
}

impl Compare {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.partial_cmp(&right),
            _ => match (left, right) {
                (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
                _ => (left == right).then_some(std::cmp::Ordering::Equal),
            },
        };
        match self {
            Compare::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Compare::NotEqual => !order.is_some_and(std::cmp::Ordering::is_eq),
            Compare::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Compare::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Compare::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Compare::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected \"{token}\" before \"{}\"", self.rest())) }
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += self.peek().map_or(0, char::len_utf8);
        }
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let end = self.rest().find(|c| !wanted(c)).unwrap_or(self.rest().len());
        let taken = self.rest()[..end].to_owned();
        self.at += end;
        taken
    }

    fn nodes(&mut self, in_range: bool) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        loop {
            let text = self.take(|c| c != '{');
            if !text.is_empty() {
                nodes.push(Node::Text(text));
            }
            if !self.eat("{") {
                return if in_range { Err("{range} has no {end}".into()) } else { Ok(nodes) };
            }
            self.spaces();
            if self.word("end") {
                self.spaces();
                self.expect("}")?;
                return if in_range { Ok(nodes) } else { Err("{end} without {range}".into()) };
            }
            if self.word("range") {
                self.spaces();
                let path = self.path()?;
                self.spaces();
                self.expect("}")?;
                nodes.push(Node::Range(path, self.nodes(true)?));
                continue;
            }
            if matches!(self.peek(), Some('"' | '\'')) {
                nodes.push(Node::Text(self.quoted()?));
            } else {
                nodes.push(Node::Path(self.path()?));
            }
            self.spaces();
            self.expect("}")?;
        }
    }

    /// A keyword, and not the beginning of a field's name.
    fn word(&mut self, word: &str) -> bool {
        let follows = self.rest().strip_prefix(word).map(|rest| rest.chars().next());
        let found = matches!(follows, Some(None | Some(' ' | '}')));
        if found {
            self.at += word.len();
        }
        found
    }

    fn quoted(&mut self) -> Result<String, String> {
        let quote = self.peek().ok_or("expected a quoted text")?;
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.peek() else { return Err("a quoted text has no end".into()) };
            self.at += c.len_utf8();
            if c == quote {
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some(escaped) = self.peek() else { return Err("a quoted text has no end".into()) };
            self.at += escaped.len_utf8();
            text.push(match escaped {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            });
        }
    }

    fn path(&mut self) -> Result<Path, String> {
        let root = self.eat("$");
        if !root {
            self.eat("@");
        }
        let mut steps = Vec::new();
        loop {
            if self.eat("..") {
                let name = self.field();
                if name.is_empty() {
                    return Err("expected a field after \"..\"".into());
                }
                steps.push(Step::Descend(name));
            } else if self.eat(".") {
                if self.eat("*") {
                    steps.push(Step::All);
                    continue;
                }
                let name = self.field();
                if !name.is_empty() {
                    steps.push(Step::Field(name));
                } else if self.peek() != Some('[') && !self.ends() {
                    return Err(format!("expected a field before \"{}\"", self.rest()));
                }
            } else if self.eat("[") {
                steps.push(self.subscript()?);
            } else if self.ends() {
                return Ok(Path { root, steps });
            } else {
                return Err(format!("expected \".field\" or \"[…]\" before \"{}\"", self.rest()));
            }
        }
    }

    fn ends(&self) -> bool {
        matches!(self.peek(), None | Some('}' | ')' | ' ' | '=' | '!' | '<' | '>'))
    }

    /// A field's name, where `\.` is a dot of the name.
    fn field(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if c == '\\' {
                self.at += 1;
                if let Some(escaped) = self.peek() {
                    name.push(escaped);
                    self.at += escaped.len_utf8();
                }
            } else if c.is_alphanumeric() || "_-/:".contains(c) {
                name.push(c);
                self.at += c.len_utf8();
            } else {
                break;
            }
        }
        name
    }

    /// What is between brackets, the closing one included.
    fn subscript(&mut self) -> Result<Step, String> {
        self.spaces();
        let step = match self.peek() {
            Some('*') => {
                self.at += 1;
                Step::All
            }
            Some('?') => {
                self.at += 1;
                self.expect("(")?;
                let step = self.filter()?;
                self.expect(")")?;
                step
            }
            Some('"' | '\'') => {
                let mut names = vec![self.quoted()?];
                while self.comma() {
                    names.push(self.quoted()?);
                }
                Step::Fields(names)
            }
            Some(_) | None => self.numbers()?,
        };
        self.spaces();
        self.expect("]")?;
        Ok(step)
    }

    fn comma(&mut self) -> bool {
        self.spaces();
        let found = self.eat(",");
        self.spaces();
        found
    }

    fn numbers(&mut self) -> Result<Step, String> {
        let first = self.number()?;
        if self.eat(":") {
            let to = self.number()?;
            return Ok(Step::Slice(first, to));
        }
        let mut indexes = vec![first.ok_or("expected an index between brackets")?];
        while self.comma() {
            indexes.push(self.number()?.ok_or("expected an index after the comma")?);
        }
        Ok(Step::Index(indexes))
    }

    fn number(&mut self) -> Result<Option<i64>, String> {
        let digits = self.take(|c| c.is_ascii_digit() || c == '-');
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| format!("\"{digits}\" is not an index"))
    }

    fn filter(&mut self) -> Result<Step, String> {
        self.spaces();
        if !self.rest().starts_with(['@', '$']) {
            return Err("a filter begins with @".into());
        }
        let path = self.path()?;
        self.spaces();
        let operators = [
            ("==", Compare::Equal),
            ("!=", Compare::NotEqual),
            ("<=", Compare::LessOrEqual),
            (">=", Compare::GreaterOrEqual),
            ("<", Compare::Less),
            (">", Compare::Greater),
        ];
        for (token, compare) in operators {
            if self.eat(token) {
                self.spaces();
                let value = self.literal()?;
                self.spaces();
                return Ok(Step::Filter(path, Some((compare, value))));
            }
        }
        Ok(Step::Filter(path, None))
    }

    fn literal(&mut self) -> Result<Value, String> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return Ok(Value::String(self.quoted()?));
        }
        let word = self.take(|c| !c.is_whitespace() && c != ')');
        serde_json::from_str(&word).map_err(|_| format!("\"{word}\" is no value; write texts in quotes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str) -> String {
        let list = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "status": {"phase": "Running", "pid": 10, "ready": true}},
            {"metadata": {"name": "b"}, "status": {"phase": "Backoff", "pid": 20, "conditions": [{"type": "Ready", "status": "False"}]}},
            {"metadata": {"name": "c"}, "status": {"phase": "Running", "pid": 30}},
        ]});
        Template::parse(template).unwrap().render(&list)
    }

    #[test]
    fn paths_select_and_join() {
        assert_eq!(rendered("{.items[*].metadata.name}"), "a b c");
        assert_eq!(rendered("{$.kind}"), "List");
        assert_eq!(rendered("{.items[0].status.pid}"), "10");
        assert_eq!(rendered("{.items[-1:].metadata.name}"), "c");
        assert_eq!(rendered("{.items[-1].metadata['name']}"), "c");
        assert_eq!(rendered("{.items[0,2].metadata.name}"), "a c");
        assert_eq!(rendered("{.items[1:].metadata.name}"), "b c");
        assert_eq!(rendered("{..phase}"), "Running Backoff Running");
        assert_eq!(rendered("{.items[0].metadata.labels}"), r#"{"app.kubernetes.io/name":"x"}"#);
        assert_eq!(rendered(r"{.items[0].metadata.labels.app\.kubernetes\.io/name}"), "x");
        assert_eq!(rendered("{.items[0].metadata.labels['app.kubernetes.io/name']}"), "x");
    }

    #[test]
    fn filters_compare_and_test_for_existence() {
        assert_eq!(rendered(r#"{.items[?(@.status.phase=="Running")].metadata.name}"#), "a c");
        assert_eq!(rendered("{.items[?(@.status.phase!='Running')].metadata.name}"), "b");
        assert_eq!(rendered("{.items[?(@.status.pid >= 20)].metadata.name}"), "b c");
        assert_eq!(rendered("{.items[?(@.status.ready==true)].metadata.name}"), "a");
        assert_eq!(rendered("{.items[?(@.status.conditions)].metadata.name}"), "b");
        assert_eq!(rendered(r#"{.items[1].status.conditions[?(@.type=="Ready")].status}"#), "False");
    }

    #[test]
    fn ranges_and_text_repeat() {
        assert_eq!(
            rendered(r#"{range .items[*]}{.metadata.name}={.status.pid}{"\n"}{end}done"#),
            "a=10\nb=20\nc=30\ndone"
        );
        assert_eq!(rendered("names: {.items[*].metadata.name}"), "names: a b c");
    }

    #[test]
    fn what_is_missing_renders_as_nothing() {
        assert_eq!(rendered("[{.items[9].x.y}]"), "[]");
    }

    #[test]
    fn broken_templates_say_what_is_wrong() {
        for (template, part) in [
            ("{.a", "expected \"}\""),
            ("{range .items[*]}x", "no {end}"),
            ("{end}", "without {range}"),
            ("{.a[}", "index"),
            ("{.a[?(b)]}", "begins with @"),
            ("{.a[?(@.b==c)]}", "quotes"),
            ("{\"a}", "no end"),
            ("{a}", "expected"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
    }

    #[test]
    fn a_single_path_needs_no_braces() {
        let value = json!({"status": {"phase": "Running"}});
        for path in ["{.status.phase}", ".status.phase", "status.phase"] {
            assert_eq!(Template::parse_path(path).unwrap().find(&value), [&json!("Running")], "{path}");
        }
        assert!(Template::parse_path("{.a} {.b}").is_err());
    }
}
