//! The words people use for kinds, with errors that name the nearest one.

use ostler_core::suggest;

pub(crate) use ostler_core::Kind;

use crate::error::Error;

/// The kind meant by a name, plural, singular or short name, in any case.
pub(crate) fn parse(word: &str) -> Result<Kind, Error> {
    Kind::parse(word).ok_or_else(|| {
        let words = Kind::ALL.iter().flat_map(|kind| [kind.singular(), kind.plural()]);
        let hint = suggest::nearest(word, words).map_or_else(
            || format!("known are {}", Kind::ALL.map(Kind::plural).join(", ")),
            |near| format!("did you mean \"{near}\"?"),
        );
        Error::usage(format!("there is no resource type \"{word}\""), hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kind_names_the_nearest() {
        let error = parse("instnces").unwrap_err();
        assert_eq!(error.to_string(), "there is no resource type \"instnces\"");
        assert_eq!(error.hint().as_deref(), Some("did you mean \"instances\"?"));
        let error = parse("deployments").unwrap_err();
        assert!(error.hint().unwrap().contains("processes"));
    }
}
