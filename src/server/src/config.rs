//! The daemon's configuration, as the API tells and changes it.

use ostler_config::{Live, Reloaded};
use ostler_rpc::v1;
use tracing::{info, warn};

use crate::error::{ApiError, Cause, Reason};

/// Every value and where it is from.
pub(crate) fn shown(live: &Live) -> v1::ConfigResponse {
    let shown = live.show();
    let settings = shown.settings.into_iter().map(|setting| v1::ConfigSetting {
        key: setting.key.to_owned(),
        value: setting.value.to_string(),
        origin: setting.origin,
        running: setting.running.map(|value| value.to_string()).unwrap_or_default(),
    });
    v1::ConfigResponse {
        settings: settings.collect(),
        file: shown.file.display().to_string(),
        file_error: shown.error.unwrap_or_default(),
    }
}

/// Changes values until the daemon ends, all or nothing.
pub(crate) fn set(live: &Live, request: v1::SetConfigRequest) -> Result<(), ApiError> {
    let set: Vec<(String, String)> = request.set.into_iter().collect();
    match live.set(&set, &request.unset) {
        Ok(changed) => {
            if !changed.is_empty() {
                info!(keys = changed.join(", "), "the configuration was changed");
            }
            Ok(())
        }
        Err(refused) => {
            let causes =
                refused.into_iter().map(|it| Cause { object: 0, field: it.origin, message: it.message }).collect();
            let mut error = ApiError::new(Reason::Invalid, "the configuration cannot be changed like this");
            error.causes = causes;
            Err(error.hint("nothing was changed"))
        }
    }
}

/// Reads the file again, if it has changed or in any case, and says in the log what came of it.
pub fn reload(live: &Live, anyway: bool) {
    match live.reload(anyway) {
        Reloaded::Unchanged => {}
        Reloaded::Changed(keys) => info!(keys = keys.join(", "), "the configuration file was read again"),
        Reloaded::Bad(why) => warn!("the configuration file is bad, and the values before stay in force: {why}"),
    }
}
