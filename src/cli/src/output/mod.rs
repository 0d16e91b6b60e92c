//! Turning objects into text: tables, JSON, YAML, JSONPath.

pub(crate) mod json;
pub(crate) mod jsonpath;
pub(crate) mod rows;
pub(crate) mod table;

use std::str::FromStr;

/// The value of `-o`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Name,
    JsonPath(jsonpath::Template),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wide" => Ok(Format::Wide),
            "json" => Ok(Format::Json),
            "yaml" => Ok(Format::Yaml),
            "name" => Ok(Format::Name),
            _ => match text.strip_prefix("jsonpath=") {
                Some(template) => Ok(Format::JsonPath(jsonpath::Template::parse(template)?)),
                None => Err("write wide, json, yaml, name or jsonpath='{…}'".into()),
            },
        }
    }
}
