//! Errors of the API, with Kubernetes' reasons.

use ostler_core::Kind;
use ostler_engine::ActError;

/// What kind of error it is. Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The object does not exist.
    NotFound,
    /// It was changed by somebody else at the same time, or its state does not allow the request.
    Conflict,
    /// The object breaks a rule; `causes` has every one.
    Invalid,
    /// The request itself makes no sense.
    BadRequest,
    /// It is not allowed.
    Forbidden,
    /// The history no longer reaches back so far: list again.
    Expired,
    /// The store takes no changes now, or the daemon is ending.
    ServiceUnavailable,
    /// Our fault.
    InternalError,
}

impl Reason {
    /// The word on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::Conflict => "Conflict",
            Self::Invalid => "Invalid",
            Self::BadRequest => "BadRequest",
            Self::Forbidden => "Forbidden",
            Self::Expired => "Expired",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::InternalError => "InternalError",
        }
    }
}

/// One thing that is wrong with one object of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Which object of the request, from 0.
    pub object: usize,
    /// `spec.ports[1].port`; empty for the whole object.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// Why a request was not carried out. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For machines.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// What exactly, where there is more than one thing.
    pub causes: Vec<Cause>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn not_found(kind: Kind, name: &str) -> Self {
        Self::new(Reason::NotFound, format!("{} {name:?} not found", kind.resource()))
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }
}

impl From<ostler_store::Error> for ApiError {
    fn from(error: ostler_store::Error) -> Self {
        use ostler_store::Error;
        let message = error.to_string();
        match error {
            Error::Conflict { .. } => {
                Self::new(Reason::Conflict, format!("the object was changed at the same time: {message}"))
                    .hint("try again")
            }
            Error::TooLarge { .. } | Error::Invalid { .. } => Self::new(Reason::Invalid, message),
            Error::ReadOnly { .. } => Self::new(Reason::ServiceUnavailable, message)
                .hint("free some space on the disk of the state directory; nothing was changed"),
            Error::Closed => Self::new(Reason::ServiceUnavailable, "the daemon is ending"),
        }
    }
}

impl From<ActError> for ApiError {
    fn from(error: ActError) -> Self {
        let message = error.to_string();
        match error {
            ActError::NotFound(instance) => Self::not_found(Kind::Instance, &instance.name),
            ActError::Illegal { .. } => Self::new(Reason::Conflict, message),
            ActError::Store(error) => error.into(),
            ActError::Upgrade(_) => Self::new(Reason::BadRequest, message).hint("the running daemon goes on unchanged"),
            ActError::Ending => Self::new(Reason::ServiceUnavailable, message),
        }
    }
}
