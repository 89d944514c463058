//! Which of a VPC's route tables are served.
//!
//! The system table always is: new vSwitches use it, and a cloud firewall that moves vSwitches to a table of its own still needs it. Others are
//! served when they were configured, or where nodes' vSwitches route by them. The invariant: a vSwitch whose table is not served is known, so that its nodes are never called available.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{RouteTable, TableKind, VSwitchId, VpcId, VpcRouteTableId};

/// How to choose the tables to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChoice {
    /// The system table and these.
    Listed(Vec<VpcRouteTableId>),
    /// The system table and every table that a vSwitch with a node in it routes by.
    Discover,
}

impl TableChoice {
    /// Reads what somebody configured: IDs, or the word `discover` alone.
    #[must_use]
    pub fn of<'a>(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let ids = ids.into_iter().map(str::trim).filter(|id| !id.is_empty());
        let listed: Vec<VpcRouteTableId> = ids.map(Into::into).collect();
        match listed.as_slice() {
            [only] if only.as_str().eq_ignore_ascii_case("discover") => Self::Discover,
            _ => Self::Listed(listed),
        }
    }
}

impl Default for TableChoice {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

/// The choice of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The tables that every node's entry goes to, the system table first.
    pub tables: Vec<VpcRouteTableId>,
    /// Tables that are looked at and get no new entries: what is ours in them still goes when its node does. Only with [`TableChoice::Discover`].
    pub kept: Vec<VpcRouteTableId>,
    /// Tables that were configured and are not there, or are bound to a gateway and take no entries.
    pub unusable: Vec<VpcRouteTableId>,
    /// vSwitches that route by a table that is not served.
    pub unserved: BTreeMap<VSwitchId, VpcRouteTableId>,
}

/// The VPC's list of tables has no system table in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no route tables found by vpc id[{vpc}]: the VPC does not exist in this region, or the credentials may not see it"
)]
pub struct NoSystemTable {
    /// The VPC.
    pub vpc: VpcId,
}

impl Served {
    /// Chooses among all tables of the VPC. `in_use` are the vSwitches that nodes are in, as far as known.
    ///
    /// # Errors
    /// There is no system table among them.
    pub fn choose(
        all: &[RouteTable],
        choice: &TableChoice,
        in_use: &BTreeSet<VSwitchId>,
        vpc: &VpcId,
    ) -> Result<Self, NoSystemTable> {
        let system = all
            .iter()
            .find(|table| table.kind == TableKind::System)
            .ok_or_else(|| NoSystemTable { vpc: vpc.clone() })?;
        let mut served = Self {
            tables: vec![system.id.clone()],
            kept: Vec::new(),
            unusable: Vec::new(),
            unserved: BTreeMap::new(),
        };
        match choice {
            TableChoice::Listed(listed) => served.take_listed(all, listed),
            TableChoice::Discover => served.take_used(all, in_use),
        }
        for table in all.iter().filter(|table| !table.gateway && !served.tables.contains(&table.id)) {
            served.unserved.extend(table.vswitches.iter().map(|vswitch| (vswitch.clone(), table.id.clone())));
        }
        Ok(served)
    }

    fn take_listed(&mut self, all: &[RouteTable], listed: &[VpcRouteTableId]) {
        for id in listed {
            if self.tables.contains(id) || self.unusable.contains(id) {
                continue;
            }
            if all.iter().any(|table| table.id == *id && !table.gateway) {
                self.tables.push(id.clone());
            } else {
                self.unusable.push(id.clone());
            }
        }
    }

    fn take_used(&mut self, all: &[RouteTable], in_use: &BTreeSet<VSwitchId>) {
        for table in all.iter().filter(|table| !table.gateway && table.kind == TableKind::Custom) {
            let used = table.vswitches.iter().any(|vswitch| in_use.contains(vswitch));
            if used { &mut self.tables } else { &mut self.kept }.push(table.id.clone());
        }
    }

    /// Every table whose entries are looked at.
    pub fn listed(&self) -> impl Iterator<Item = &VpcRouteTableId> {
        self.tables.iter().chain(&self.kept)
    }

    /// Whether there are vSwitches whose nodes would need a table that is not served.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unserved.is_empty()
    }

    /// The setting that would serve every table that a vSwitch uses.
    #[must_use]
    pub fn remedy(&self) -> String {
        let mut all: Vec<&str> = self.tables.iter().map(VpcRouteTableId::as_str).collect();
        for table in self.unserved.values() {
            if !all.contains(&table.as_str()) {
                all.push(table.as_str());
            }
        }
        format!(
            "start the controller with --route-table-ids={}, or with --route-table-ids=discover",
            all.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: &str, kind: TableKind, gateway: bool, vswitches: &[&str]) -> RouteTable {
        RouteTable {
            id: id.into(),
            kind,
            gateway,
            vswitches: vswitches.iter().map(|v| (*v).into()).collect(),
        }
    }

    fn vpc() -> Vec<RouteTable> {
        vec![
            table("vtb-2", TableKind::Custom, false, &["vsw-2"]),
            table("vtb-sys", TableKind::System, false, &["vsw-1"]),
            table("vtb-gw", TableKind::Custom, true, &[]),
        ]
    }

    fn chosen(choice: &TableChoice, in_use: &[&str]) -> Served {
        let in_use = in_use.iter().map(|vswitch| (*vswitch).into()).collect();
        Served::choose(&vpc(), choice, &in_use, &"vpc-1".into()).unwrap()
    }

    fn listed(ids: &[&str]) -> Served {
        chosen(&TableChoice::Listed(ids.iter().map(|id| (*id).into()).collect()), &[])
    }

    #[test]
    fn the_system_table_is_served_in_any_case() {
        let served = listed(&[]);
        assert_eq!(served.tables, ["vtb-sys".into()]);
        assert_eq!(served.unserved[&"vsw-2".into()], "vtb-2".into());
        assert_eq!(
            served.remedy(),
            "start the controller with --route-table-ids=vtb-sys,vtb-2, or with --route-table-ids=discover"
        );

        let configured = listed(&["vtb-2"]);
        assert_eq!(configured.tables, ["vtb-sys".into(), "vtb-2".into()]);
        assert!(configured.is_complete() && configured.kept.is_empty());
    }

    #[test]
    fn discovery_follows_the_nodes_vswitches() {
        let before = chosen(&TableChoice::Discover, &["vsw-1"]);
        assert_eq!((before.tables, before.kept), (vec!["vtb-sys".into()], vec!["vtb-2".into()]));
        let after = chosen(&TableChoice::Discover, &["vsw-1", "vsw-2"]);
        assert_eq!(after.tables, ["vtb-sys".into(), "vtb-2".into()]);
        assert!(after.is_complete() && after.kept.is_empty());
    }

    #[test]
    fn tables_that_take_no_entries_are_named() {
        let served = listed(&["vtb-gw", "vtb-typo", "vtb-sys"]);
        assert_eq!(served.unusable, ["vtb-gw".into(), "vtb-typo".into()]);
        assert_eq!(served.tables, ["vtb-sys".into()]);
    }

    #[test]
    fn a_vpc_without_tables_is_an_error_not_an_empty_choice() {
        let choice = TableChoice::Listed(vec!["vtb-2".into()]);
        let error = Served::choose(&[], &choice, &BTreeSet::new(), &"vpc-1".into()).unwrap_err();
        assert!(error.to_string().starts_with("no route tables found by vpc id[vpc-1]"));
    }
}
