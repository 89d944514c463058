//! Which of a VPC's route tables are served.
//!
//! The system table always is: new vSwitches use it, and a cloud firewall that moves vSwitches to a table of its own still needs it. Others are
//! served when they were configured. The invariant: a vSwitch whose table is not served is known, so that its nodes are never called available.

use std::collections::BTreeMap;

use crate::model::{RouteTable, TableKind, VSwitchId, VpcId, VpcRouteTableId};

/// The choice of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The tables that every node's entry goes to, the system table first.
    pub tables: Vec<VpcRouteTableId>,
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
    /// Chooses among all tables of the VPC.
    ///
    /// # Errors
    /// There is no system table among them.
    pub fn choose(
        all: &[RouteTable],
        configured: &[VpcRouteTableId],
        vpc: &VpcId,
    ) -> Result<Self, NoSystemTable> {
        let system = all
            .iter()
            .find(|table| table.kind == TableKind::System)
            .ok_or_else(|| NoSystemTable { vpc: vpc.clone() })?;
        let mut served =
            Self { tables: vec![system.id.clone()], unusable: Vec::new(), unserved: BTreeMap::new() };
        for id in configured {
            if served.tables.contains(id) || served.unusable.contains(id) {
                continue;
            }
            if all.iter().any(|table| table.id == *id && !table.gateway) {
                served.tables.push(id.clone());
            } else {
                served.unusable.push(id.clone());
            }
        }
        for table in all.iter().filter(|table| !table.gateway && !served.tables.contains(&table.id)) {
            served.unserved.extend(table.vswitches.iter().map(|vswitch| (vswitch.clone(), table.id.clone())));
        }
        Ok(served)
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
        format!("start the controller with --route-table-ids={}", all.join(","))
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

    #[test]
    fn the_system_table_is_served_in_any_case() {
        let served = Served::choose(&vpc(), &[], &"vpc-1".into()).unwrap();
        assert_eq!(served.tables, ["vtb-sys".into()]);
        assert_eq!(served.unserved[&"vsw-2".into()], "vtb-2".into());
        assert_eq!(served.remedy(), "start the controller with --route-table-ids=vtb-sys,vtb-2");

        let configured = Served::choose(&vpc(), &["vtb-2".into()], &"vpc-1".into()).unwrap();
        assert_eq!(configured.tables, ["vtb-sys".into(), "vtb-2".into()]);
        assert!(configured.is_complete());
    }

    #[test]
    fn tables_that_take_no_entries_are_named() {
        let served =
            Served::choose(&vpc(), &["vtb-gw".into(), "vtb-typo".into(), "vtb-sys".into()], &"vpc-1".into())
                .unwrap();
        assert_eq!(served.unusable, ["vtb-gw".into(), "vtb-typo".into()]);
        assert_eq!(served.tables, ["vtb-sys".into()]);
    }

    #[test]
    fn a_vpc_without_tables_is_an_error_not_an_empty_choice() {
        let error = Served::choose(&[], &["vtb-2".into()], &"vpc-1".into()).unwrap_err();
        assert!(error.to_string().starts_with("no route tables found by vpc id[vpc-1]"));
    }
}
