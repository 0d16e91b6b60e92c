//! The controller: compares what the store wants with what custody shows, and acts until they agree.
//!
//! Owns the Instances; the API owns the specs of everything else. One loop runs the reconcilers, so there is never more
//! than one worker for an object; they decide with the pure planners of `ostler_core`, and their effects (driver, store)
//! are submitted without waiting. `docs/designs/controller.md` has the reasons.

mod clock;
mod controller;
pub mod driver;
pub mod external;
mod files;
pub mod filewatch;
mod ports;
mod queue;
mod spawn;
pub mod usage;
pub mod vault;

pub use clock::Clock;
pub use controller::{
    ActError, Acted, Action, Controller, Ended, Handle, InstanceRef, Options, Overview, Start, StartFailed, Tuning,
    place,
};
pub use ostler_probe as probe;
pub use spawn::log_dir;
