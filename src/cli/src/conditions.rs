//! What `ostler wait` waits for, and whether an object has it.

use serde_json::Value;

use crate::output::jsonpath::{self, Template};

/// The value of `--for`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum For {
    Condition { kind: String, status: String },
    JsonPath { path: Template, value: Option<String> },
    Create,
    Delete,
}

impl std::str::FromStr for For {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, rest) = text.split_once('=').unwrap_or((text, ""));
        match what {
            "create" if rest.is_empty() => Ok(For::Create),
            "delete" if rest.is_empty() => Ok(For::Delete),
            "condition" if !rest.is_empty() => {
                let (kind, status) = rest.split_once('=').unwrap_or((rest, "True"));
                Ok(For::Condition { kind: kind.into(), status: status.into() })
            }
            "jsonpath" if !rest.is_empty() => {
                // The path may hold "==" itself: the value comes after its closing brace.
                let (path, value) = match rest.find('}') {
                    Some(_) if rest.starts_with('{') => {
                        let end = rest.rfind('}').map_or(rest.len(), |end| end + 1);
                        (&rest[..end], rest[end..].strip_prefix('='))
                    }
                    Some(_) | None => rest.split_once('=').map_or((rest, None), |(path, value)| (path, Some(value))),
                };
                Ok(For::JsonPath { path: Template::parse_path(path)?, value: value.map(str::to_owned) })
            }
            _ => Err("write condition=NAME[=STATUS], delete, create or jsonpath='{.path}'[=VALUE]".into()),
        }
    }
}

impl For {
    /// Whether an object that exists meets it.
    pub(crate) fn met(&self, object: &Value) -> bool {
        match self {
            For::Create => true,
            For::Delete => false,
            For::Condition { kind, status } => {
                current(object) && find(object, kind).is_some_and(|found| found.eq_ignore_ascii_case(status))
            }
            For::JsonPath { path, value } => {
                let found = path.find(object);
                match value {
                    None => !found.is_empty(),
                    Some(value) => found.iter().any(|found| jsonpath::text(found) == *value),
                }
            }
        }
    }
}

/// Whether a Process that was written at `generation` has been brought to where it should be.
pub(crate) fn settled(object: &Value) -> bool {
    let number = |field: &str| object["status"][field].as_u64();
    let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
    current(object)
        && number("updatedReplicas").is_none_or(|updated| updated >= wanted)
        && find(object, "Ready").is_some_and(|status| status == "True")
}

/// Whether the status speaks of the spec as it is now.
fn current(object: &Value) -> bool {
    match (object["status"]["observedGeneration"].as_u64(), object["metadata"]["generation"].as_u64()) {
        (Some(observed), Some(generation)) => observed >= generation,
        (Some(_) | None, _) => true,
    }
}

/// The status of a condition. Where nothing is called Ready, Available means it.
fn find<'v>(object: &'v Value, kind: &str) -> Option<&'v str> {
    let conditions = object["status"]["conditions"].as_array()?;
    let named = |wanted: &str| {
        let condition = conditions
            .iter()
            .find(|condition| condition["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(wanted)))?;
        condition["status"].as_str()
    };
    named(kind).or_else(|| if kind.eq_ignore_ascii_case("Ready") { named("Available") } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn met(what: &str, object: &Value) -> bool {
        what.parse::<For>().unwrap().met(object)
    }

    #[test]
    fn conditions_are_true_unless_said_otherwise() {
        let object =
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]}});
        assert!(met("condition=Ready", &object));
        assert!(met("condition=ready=true", &object));
        assert!(met("condition=X=False", &object));
        assert!(!met("condition=X", &object));
        assert!(!met("condition=Missing", &object));
        assert!(!met("condition=Ready", &json!({})));
    }

    #[test]
    fn a_status_of_an_older_generation_does_not_count() {
        let object = |observed| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": observed,
                "conditions": [{"type": "Available", "status": "True"}]}})
        };
        assert!(!met("condition=Ready", &object(1)));
        assert!(met("condition=Ready", &object(2)));
        assert!(!settled(&object(1)));
        assert!(settled(&object(2)));
    }

    #[test]
    fn jsonpaths_compare_text() {
        let object = json!({"status": {"phase": "Running", "pid": 7}});
        assert!(met("jsonpath={.status.phase}=Running", &object));
        assert!(met("jsonpath=.status.pid=7", &object));
        assert!(met("jsonpath={.status.phase}", &object));
        assert!(!met("jsonpath={.status.phase}=Stopped", &object));
        assert!(!met("jsonpath={.status.missing}", &object));
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "ready", "condition", "delete=x", "jsonpath={.a"] {
            assert!(text.parse::<For>().is_err(), "{text}");
        }
    }
}
