//! What a command is about: `KIND`, `KIND NAME…`, `KIND/NAME…`, `KIND,KIND`, `all`.

use crate::error::Error;
use crate::kinds::{self, Kind};

/// Objects of one kind: those named, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<String>,
}

/// Reads the positional arguments of `get`, `delete` and the like.
///
/// Targets of one kind that follow each other are joined, so that they need one request.
pub(crate) fn parse(words: &[String]) -> Result<Vec<Target>, Error> {
    let Some(first) = words.first() else {
        return Err(Error::usage(
            "which resource?",
            format!("write KIND, KIND NAME or KIND/NAME; kinds are {}", Kind::ALL.map(Kind::plural).join(", ")),
        ));
    };
    if words.iter().any(|word| word.contains('/')) {
        return slashed(words);
    }
    let mut targets = Vec::new();
    for word in first.split(',') {
        if word.eq_ignore_ascii_case("all") {
            targets.extend(
                [Kind::Process, Kind::CronJob, Kind::Job, Kind::Instance]
                    .map(|kind| Target { kind, names: words[1..].to_vec() }),
            );
        } else {
            targets.push(Target { kind: kinds::parse(word)?, names: words[1..].to_vec() });
        }
    }
    if targets.len() > 1 && words.len() > 1 {
        return Err(Error::usage("names cannot follow several resource types", "write each one as KIND/NAME"));
    }
    Ok(targets)
}

fn slashed(words: &[String]) -> Result<Vec<Target>, Error> {
    let mut targets: Vec<Target> = Vec::new();
    for word in words {
        let (kind, name) = word.split_once('/').ok_or_else(|| {
            Error::usage(
                format!("\"{word}\" has no resource type, though others have one"),
                format!("write for example process/{word}"),
            )
        })?;
        if name.is_empty() || name.contains('/') {
            return Err(Error::usage(format!("\"{word}\" is not KIND/NAME"), ""));
        }
        let kind = kinds::parse(kind)?;
        match targets.last_mut() {
            Some(last) if last.kind == kind => last.names.push(name.to_owned()),
            Some(_) | None => targets.push(Target { kind, names: vec![name.to_owned()] }),
        }
    }
    Ok(targets)
}

/// Like [`parse`], for commands that act on what runs.
pub(crate) fn parse_runnable(words: &[String]) -> Result<Vec<Target>, Error> {
    if let [word] = words
        && !word.contains(['/', ','])
        && Kind::parse(word).is_none()
        && word != "all"
    {
        return Err(Error::usage(
            format!("\"{word}\" has no resource type"),
            format!("write process/{word} or instance/{word}"),
        ));
    }
    let targets = parse(words)?;
    for target in &targets {
        match target.kind {
            Kind::Process | Kind::Job | Kind::CronJob | Kind::Instance | Kind::External => {}
            Kind::Namespace | Kind::ConfigMap | Kind::Secret | Kind::Source | Kind::Event => {
                return Err(Error::usage(
                    format!("{} do not run", target.kind.plural()),
                    "name a process, a job, a cronjob or an instance",
                ));
            }
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn target(kind: Kind, names: &[&str]) -> Target {
        Target { kind, names: names.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn all_forms_are_read() {
        assert_eq!(parse(&words("proc")).unwrap(), [target(Kind::Process, &[])]);
        assert_eq!(parse(&words("inst web-0 web-1")).unwrap(), [target(Kind::Instance, &["web-0", "web-1"])]);
        assert_eq!(
            parse(&words("process/a proc/b instance/c")).unwrap(),
            [target(Kind::Process, &["a", "b"]), target(Kind::Instance, &["c"])]
        );
        assert_eq!(parse(&words("ns,ev")).unwrap(), [target(Kind::Namespace, &[]), target(Kind::Event, &[])]);
        let all = [Kind::Process, Kind::CronJob, Kind::Job, Kind::Instance].map(|kind| target(kind, &[]));
        assert_eq!(parse(&words("all")).unwrap(), all);
    }

    #[test]
    fn mixed_and_empty_forms_are_refused() {
        for text in ["", "process/a b", "process/", "proc,inst a", "process/a/b"] {
            assert!(parse(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bare_name_gets_a_hint_how_to_write_it() {
        let error = parse_runnable(&words("web")).unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("write process/web or instance/web"));
        assert!(parse_runnable(&words("ns default")).is_err());
    }
}
