//! Why a command failed, how that is said, and which exit code it means.
//!
//! The server's errors are written as kubectl writes them; what the user can do about it goes on a line of its own,
//! `hint: …`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use ostler_rpc::v1;
use prost::Message;
use tonic::Code;

use crate::exit::Exit;

/// Everything that ends a command early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The arguments make no sense together, or name something unknown.
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// Nothing listens at the socket.
    #[error("cannot reach the daemon at {}: {source}", path.display())]
    Unreachable {
        path: PathBuf,
        /// The state directory to start a daemon for, when one is known.
        state_dir: Option<PathBuf>,
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer came: the request may or may not have been carried out.
    #[error("lost the connection to the daemon: {}", .0.message())]
    Lost(Box<tonic::Status>),
    #[error("{}", .0.message)]
    Server(Box<ServerError>),
    /// The manifests are wrong; the text is complete, with places.
    #[error("{0}")]
    Manifest(String),
    #[error("timed out {0}")]
    Timeout(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the daemon sent an object that cannot be read: {0}")]
    Object(#[from] serde_json::Error),
    #[error("cannot write YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
    #[error("{message}")]
    Failed { message: String, hint: String },
}

/// An error the server answered with.
#[derive(Debug)]
pub(crate) struct ServerError {
    pub(crate) code: Code,
    /// Kubernetes' reason: "NotFound"
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) causes: Vec<v1::Cause>,
    pub(crate) hint: String,
    /// `causes` as they are shown, where more is known than their fields say (the place in a manifest).
    pub(crate) bullets: Option<Vec<String>>,
}

impl Error {
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Usage { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Failed { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn request_timeout(after: Duration) -> Self {
        Error::Timeout(format!("after {after:?} waiting for the daemon's answer"))
    }

    /// Whether the server said that the object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Server(error) if error.code == Code::NotFound)
    }

    /// Whether somebody else changed the object meanwhile.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Error::Server(error) if error.reason == "Conflict")
    }

    /// Whether the daemon went away or restarts: trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Error::Lost(_) => true,
            Error::Unreachable { source, .. } => {
                matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
            }
            Error::Server(error) => error.code == Code::Unavailable,
            Error::Usage { .. }
            | Error::Manifest(_)
            | Error::Timeout(_)
            | Error::Output(_)
            | Error::File { .. }
            | Error::Object(_)
            | Error::Yaml(_)
            | Error::Failed { .. } => false,
        }
    }

    /// Whether the reader of our output has gone: nothing to complain about.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Error::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Error::Usage { .. } => Exit::Usage,
            Error::Unreachable { .. } => Exit::Unreachable,
            Error::Timeout(_) => Exit::Timeout,
            Error::Lost(_)
            | Error::Server(_)
            | Error::Manifest(_)
            | Error::Output(_)
            | Error::File { .. }
            | Error::Object(_)
            | Error::Yaml(_)
            | Error::Failed { .. } => Exit::Failure,
        }
    }

    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Usage { hint, .. } | Error::Failed { hint, .. } => hint.clone(),
            Error::Server(error) => error.hint.clone(),
            Error::Unreachable { state_dir, source, .. } => match (source.kind(), state_dir) {
                (io::ErrorKind::PermissionDenied, _) => "only the user who started the daemon may talk to it".into(),
                (_, Some(dir)) => format!("start it with: ostler serve --state-dir {}", dir.display()),
                (_, None) => "is a daemon running there?".into(),
            },
            Error::Lost(_) => "the request may or may not have been carried out; it is safe to repeat it".into(),
            Error::Manifest(_)
            | Error::Timeout(_)
            | Error::Output(_)
            | Error::File { .. }
            | Error::Object(_)
            | Error::Yaml(_) => String::new(),
        };
        (!hint.is_empty()).then_some(hint)
    }

    /// Says it.
    pub(crate) fn report(&self, err: &mut dyn Write) -> io::Result<()> {
        match self {
            Error::Manifest(text) => writeln!(err, "{}", text.trim_end())?,
            Error::Server(error) => {
                writeln!(err, "Error from server ({}): {}", error.reason, error.message)?;
                for line in error.bullets() {
                    writeln!(err, "  * {line}")?;
                }
            }
            Error::Usage { .. }
            | Error::Unreachable { .. }
            | Error::Lost(_)
            | Error::Timeout(_)
            | Error::Output(_)
            | Error::File { .. }
            | Error::Object(_)
            | Error::Yaml(_)
            | Error::Failed { .. } => writeln!(err, "error: {self}")?,
        }
        if let Some(hint) = self.hint() {
            writeln!(err, "hint: {hint}")?;
        }
        Ok(())
    }
}

impl ServerError {
    fn bullets(&self) -> Vec<String> {
        self.bullets.clone().unwrap_or_else(|| {
            self.causes
                .iter()
                .map(|cause| {
                    if cause.field.is_empty() {
                        cause.message.clone()
                    } else {
                        format!("{}: {}", cause.field, cause.message)
                    }
                })
                .collect()
        })
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let details = status
            .metadata()
            .get_bin(ostler_rpc::STATUS_METADATA)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| v1::Status::decode(bytes).ok());
        if details.is_none() && is_transport(status.code()) {
            return Error::Lost(Box::new(status));
        }
        let details = details.unwrap_or_default();
        Error::Server(Box::new(ServerError {
            code: status.code(),
            reason: if details.reason.is_empty() { reason(status.code()).to_owned() } else { details.reason },
            message: status.message().to_owned(),
            causes: details.causes,
            hint: details.hint,
            bullets: None,
        }))
    }
}

/// Codes tonic makes up itself when the connection breaks. The daemon's own errors always carry details.
fn is_transport(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted)
}

/// Kubernetes' word for a gRPC code.
fn reason(code: Code) -> &'static str {
    match code {
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::Aborted => "Conflict",
        Code::InvalidArgument => "BadRequest",
        Code::FailedPrecondition => "Invalid",
        Code::PermissionDenied | Code::Unauthenticated => "Forbidden",
        Code::DeadlineExceeded => "Timeout",
        Code::OutOfRange => "Expired",
        Code::ResourceExhausted => "TooManyRequests",
        Code::Unavailable => "ServiceUnavailable",
        Code::Unimplemented => "MethodNotAllowed",
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => "InternalError",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::{MetadataMap, MetadataValue};

    fn status(code: Code, message: &str, details: &v1::Status) -> tonic::Status {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(ostler_rpc::STATUS_METADATA, MetadataValue::from_bytes(&details.encode_to_vec()));
        tonic::Status::with_metadata(code, message, metadata)
    }

    fn text(error: &Error) -> String {
        let mut out = Vec::new();
        error.report(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn server_errors_read_as_in_kubernetes_with_causes_and_hint() {
        let details = v1::Status {
            reason: "Invalid".into(),
            causes: vec![v1::Cause {
                object: 0,
                field: "spec.replicas".into(),
                message: "must not be negative".into(),
            }],
            hint: "use 0 to stop all".into(),
        };
        let error = Error::from(status(Code::InvalidArgument, "process \"web\" is invalid", &details));
        assert_eq!(
            text(&error),
            "Error from server (Invalid): process \"web\" is invalid\n  * spec.replicas: must not be negative\nhint: use 0 to stop all\n"
        );
        assert_eq!(error.exit(), Exit::Failure);
    }

    #[test]
    fn a_code_without_details_still_has_a_reason() {
        let error = Error::from(tonic::Status::not_found("processes.ostler.dev \"x\" not found"));
        assert_eq!(text(&error), "Error from server (NotFound): processes.ostler.dev \"x\" not found\n");
        assert!(error.is_not_found());
    }

    #[test]
    fn a_broken_connection_is_transient_but_an_answer_is_not() {
        assert!(Error::from(tonic::Status::unavailable("broken pipe")).is_transient());
        let answered = Error::from(status(Code::Internal, "bug", &v1::Status::default()));
        assert!(!answered.is_transient());
    }

    #[test]
    fn an_unreachable_daemon_is_told_how_to_start() {
        let error = Error::Unreachable {
            path: "/x/ostler.sock".into(),
            state_dir: Some("/x".into()),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        assert!(text(&error).starts_with("error: cannot reach the daemon at /x/ostler.sock: "));
        assert!(text(&error).ends_with("hint: start it with: ostler serve --state-dir /x\n"));
        assert_eq!(error.exit().code(), 3);
    }
}
