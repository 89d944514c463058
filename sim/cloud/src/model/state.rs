//! The cloud's whole state as a value that can be kept: to go on where an emulator stopped, or to start tests from one place.
//!
//! What can be worked out from the rest (the index of destinations, the index of nonces) is not kept but made again, and what refers to
//! something else is checked, so that a file that was cut short or edited wrongly is refused and never half believed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Cloud, Unsettled};

/// Grows when the form changes in a way that older readers would get wrong.
const FORM: u64 = 1;

/// Why a kept state is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Of a form that this version does not read.
    #[error("the state is of form {0}, this version reads form {FORM}")]
    Form(String),
    /// Not of the form it says.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// It contradicts itself.
    #[error("the state contradicts itself: {what} {id} refers to {refers_to}, which is not there")]
    Dangling {
        /// Kind of object.
        what: &'static str,
        /// Its ID.
        id: String,
        /// What it names.
        refers_to: String,
    },
    /// Two entries of one table have one destination.
    #[error("the state contradicts itself: table {table} has two entries for {destination}")]
    Twice {
        /// The table.
        table: String,
        /// The destination.
        destination: String,
    },
}

#[derive(Serialize)]
struct Kept<'a> {
    form: u64,
    cloud: &'a Cloud,
}

#[derive(Deserialize)]
struct Read {
    form: Value,
    cloud: Value,
}

impl Cloud {
    /// The whole state. It holds secrets in the clear.
    ///
    /// # Errors
    /// It cannot be written as JSON, which no state is known to cause.
    pub fn save(&self) -> Result<Value, StateError> {
        serde_json::to_value(Kept { form: FORM, cloud: self })
            .map_err(|error| StateError::Damaged(error.to_string()))
    }

    /// The cloud of which [`Cloud::save`] gave this state.
    ///
    /// # Errors
    /// It is of another form, or contradicts itself.
    pub fn restore(state: Value) -> Result<Self, StateError> {
        let damaged = |error: serde_json::Error| StateError::Damaged(error.to_string());
        let Read { form, cloud } = serde_json::from_value(state).map_err(damaged)?;
        if form != FORM {
            return Err(StateError::Form(form.to_string()));
        }
        let mut cloud: Self = serde_json::from_value(cloud).map_err(damaged)?;
        cloud.check_references()?;
        cloud.index()?;
        let faults = std::mem::take(&mut cloud.faults);
        cloud.set_faults(faults);
        Ok(cloud)
    }

    /// Becomes another cloud whose revision is this one's next.
    pub fn replace(&mut self, other: Self) {
        let revision = self.revision.max(other.revision) + 1;
        *self = other;
        self.revision = revision;
    }

    fn index(&mut self) -> Result<(), StateError> {
        for (id, table) in &mut self.tables {
            for (sequence, entry) in &table.entries {
                if table.by_destination.insert(entry.destination, *sequence).is_some() {
                    return Err(StateError::Twice {
                        table: id.clone(),
                        destination: entry.destination.to_string(),
                    });
                }
            }
        }
        self.access.index();
        Ok(())
    }

    fn check_references(&self) -> Result<(), StateError> {
        let dangling = |what, id: &str, refers_to: &str| StateError::Dangling {
            what,
            id: id.to_owned(),
            refers_to: refers_to.to_owned(),
        };
        for (id, table) in &self.tables {
            if !self.vpcs.contains_key(&table.vpc) {
                return Err(dangling("route table", id, &table.vpc));
            }
        }
        for (id, vpc) in &self.vpcs {
            if !self.tables.contains_key(&vpc.system_table) {
                return Err(dangling("VPC", id, &vpc.system_table));
            }
            for (vswitch, spec) in &vpc.vswitches {
                if !self.tables.contains_key(&spec.table) {
                    return Err(dangling("vSwitch", vswitch, &spec.table));
                }
            }
        }
        for (id, instance) in &self.instances {
            let vpc = self.vpcs.get(&instance.vpc).ok_or_else(|| dangling("instance", id, &instance.vpc))?;
            for interface in &instance.interfaces {
                if !vpc.vswitches.contains_key(&interface.vswitch) {
                    return Err(dangling("network interface", &interface.id, &interface.vswitch));
                }
            }
        }
        // An entry that is on its way and that nothing will settle would keep its VPC busy for ever.
        for (id, table) in &self.tables {
            for (sequence, entry) in &table.entries {
                let under_way = entry.status.as_str() == "Pending" || entry.status.as_str() == "Deleting";
                let settles = self.unsettled.values().any(|change| {
                    matches!(change, Unsettled::Entry { table, sequence: other } if table == id && other == sequence)
                });
                if under_way && !settles {
                    return Err(dangling("route entry", &entry.id, "a moment at which it settles"));
                }
            }
        }
        Ok(())
    }
}

/// A moment as milliseconds since 1970.
pub(super) mod moment {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
    use time::OffsetDateTime;

    pub(in super::super) fn to_millis(at: OffsetDateTime) -> i64 {
        i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
    }

    pub(in super::super) fn from_millis(millis: i64) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
    }

    pub(in super::super) fn serialize<S: Serializer>(at: &OffsetDateTime, to: S) -> Result<S::Ok, S::Error> {
        to_millis(*at).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<OffsetDateTime, D::Error> {
        let millis = i64::deserialize(from)?;
        from_millis(millis).ok_or_else(|| D::Error::custom(format!("{millis} is no moment")))
    }
}

/// What is under way, as a list.
pub(super) mod by_moment {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use time::OffsetDateTime;

    use super::super::Unsettled;

    #[derive(Serialize, Deserialize)]
    struct Item {
        #[serde(with = "super::moment")]
        at: OffsetDateTime,
        number: u64,
        change: Unsettled,
    }

    pub(in super::super) fn serialize<S: Serializer>(
        changes: &BTreeMap<(OffsetDateTime, u64), Unsettled>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(changes.iter().map(|((at, number), change)| Item {
            at: *at,
            number: *number,
            change: change.clone(),
        }))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<(OffsetDateTime, u64), Unsettled>, D::Error> {
        let items = Vec::<Item>::deserialize(from)?;
        Ok(items.into_iter().map(|item| ((item.at, item.number), item.change)).collect())
    }
}
