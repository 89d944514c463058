//! The emulated cloud as a state machine, without sockets: every rule broken once, and nonsense.

#[cfg(test)]
#[path = "model/access.rs"]
mod access;
#[cfg(test)]
#[path = "model/bench.rs"]
mod bench;
#[cfg(test)]
#[path = "model/entries.rs"]
mod entries;
#[cfg(test)]
#[path = "model/lag.rs"]
mod lag;
#[cfg(test)]
#[path = "model/lists.rs"]
mod lists;
#[cfg(test)]
#[path = "model/rates.rs"]
mod rates;
#[cfg(test)]
#[path = "model/state.rs"]
mod state;
#[cfg(test)]
#[path = "model/tables.rs"]
mod tables;
