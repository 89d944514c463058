//! `loden lab fault`: trouble of the cloud, from words into the emulator's script.

use loden_sim_cloud::{Fault, FaultKind};

use super::arguments::{FaultArgs, Trouble};

/// What the emulator is told.
pub(super) fn fault(args: FaultArgs) -> Fault {
    let kind = match args.kind {
        Trouble::Throttled => FaultKind::Answer {
            status: 400,
            code: "Throttling.User".to_owned(),
            message: "Request was denied due to user flow control.".to_owned(),
            retry_after_s: args.retry_after,
        },
        Trouble::Error => FaultKind::Answer {
            status: 500,
            code: "InternalError".to_owned(),
            message: "The request processing has failed due to some unknown error.".to_owned(),
            retry_after_s: None,
        },
        Trouble::Slow => FaultKind::Delay { milliseconds: args.delay },
        Trouble::LoseCall => FaultKind::LoseCall,
        Trouble::LoseAnswer => FaultKind::LoseAnswer,
        Trouble::Partial => FaultKind::Item {
            destination: args.destination,
            code: "VPC_ROUTE_ENTRY_STATUS_ERROR".to_owned(),
            message: "The status of the route entry does not allow this.".to_owned(),
        },
        Trouble::Stale => FaultKind::Stale,
    };
    Fault { action: args.action, times: args.times, kind }
}
