//! Which tables are served, and what is learned of the VPC around them.

use std::collections::BTreeSet;

use loden_reconcile::Moment;

use super::super::Controller;
use super::super::notices::{About, Severity};
use crate::model::{RouteTable, VSwitchId, VpcRouteTableId, is_ipv6};
use crate::port::Failure;
use crate::tables::Served;

impl Controller {
    pub(super) fn tables_listed(&mut self, now: Moment, tables: &[RouteTable]) {
        self.lane.tables_due = false;
        let in_use = self.vswitches_in_use();
        let served = match Served::choose(tables, &self.settings.tables, &in_use, &self.settings.vpc) {
            Ok(served) => served,
            Err(error) => {
                self.lane.tables_due = true;
                let failure = Failure::api(404, "InvalidVpc.NotFound", &error.to_string(), "", None);
                self.route_failure(now, &failure);
                return;
            }
        };
        self.route_success();
        self.lane.glance_due = false;
        self.lane.tables_seen = now;
        self.tell_moved(tables);
        self.lane.all_tables = tables.to_vec();
        self.serve(now, served);
        let listed = self.lane.served.iter().flat_map(Served::listed);
        self.lane.listing_due = listed.cloned().collect();
    }

    /// The list of tables was read again though no audit is due. Entries are listed only where a table is new.
    pub(super) fn glanced(&mut self, now: Moment, tables: &[RouteTable]) {
        self.route_success();
        self.lane.tables_seen = now;
        if self.lane.all_tables != tables {
            self.tell_moved(tables);
            self.lane.all_tables = tables.to_vec();
            self.choose_again(now);
        }
    }

    /// The vSwitches that nodes are in, as far as known.
    fn vswitches_in_use(&self) -> BTreeSet<VSwitchId> {
        self.on_instance.keys().filter_map(|instance| self.instances.vswitch(instance)).cloned().collect()
    }

    /// Chooses anew among the tables that were listed last, after nodes came into other vSwitches.
    pub(in crate::controller) fn choose_again(&mut self, now: Moment) {
        let in_use = self.vswitches_in_use();
        let choice = &self.settings.tables;
        let Ok(served) = Served::choose(&self.lane.all_tables, choice, &in_use, &self.settings.vpc) else {
            return;
        };
        if self.lane.served.as_ref() != Some(&served) {
            self.serve(now, served);
            self.lane.wake(now, self.settings.aggregation);
            self.all_dirty(now);
        }
    }

    /// A vSwitch whose table changes takes its nodes' packets with it. Creating a NAT firewall does that.
    fn tell_moved(&mut self, tables: &[RouteTable]) {
        let table_of = |tables: &[RouteTable], vswitch: &VSwitchId| {
            tables.iter().find(|table| table.vswitches.contains(vswitch)).map(|table| table.id.clone())
        };
        for vswitch in self.vswitches_in_use() {
            let (old, new) = (table_of(&self.lane.all_tables, &vswitch), table_of(tables, &vswitch));
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                self.notices.tell(
                    About::Controller,
                    Severity::Warning,
                    "VSwitchMoved",
                    format!(
                        "vSwitch {vswitch}, where nodes are, routes by table {new} now and no longer by {old} (creating a NAT firewall does this); {new} needs every node's entry, and the system table keeps them"
                    ),
                );
            }
        }
    }

    fn serve(&mut self, now: Moment, served: Served) {
        let tables = &self.lane.all_tables;
        if served.is_complete() {
            self.notices.over(&About::Controller, "MultipleRouteTables", "");
        } else {
            let (vpc, count) = (&self.settings.vpc, tables.iter().filter(|table| !table.gateway).count());
            self.notices.stand(About::Controller, "MultipleRouteTables", "", || {
                format!(
                    "multiple route tables found by vpc id[{vpc}], length(tables)={count}: nodes whose vSwitch uses a table that is not served stay unavailable; {}",
                    served.remedy()
                )
            });
        }
        for table in &served.unusable {
            self.notices.stand(About::Controller, "RouteTableNotFound", table.as_str(), || {
                format!("route table {table} is configured, but the VPC has no such table that takes entries; correct --route-table-ids")
            });
        }
        self.notices.keep("RouteTableNotFound", |_, table| served.unusable.contains(&table.into()));
        let listed: BTreeSet<&VpcRouteTableId> = served.listed().collect();
        self.lane.views.retain(|table, _| listed.contains(table));
        self.lane.open.retain(|(table, _), _| listed.contains(table));
        self.lane.full.retain(|table, _| listed.contains(table));
        self.lane.blocked.retain(|(table, _), _| listed.contains(table));
        self.lane.left_out.retain(|table| listed.contains(table));
        let new = listed.into_iter().filter(|table| !self.lane.views.contains_key(*table));
        self.lane.listing_due.extend(new.cloned());
        self.lane.served = Some(served);
        self.all_dirty(now);
    }

    pub(super) fn ipv6_known(&mut self, now: Moment, there: bool) {
        self.lane.ipv6_due = false;
        let all = self.settings.pod_cidrs.iter().copied();
        self.lane.ranges = all.filter(|net| there || !is_ipv6(*net)).collect();
        self.lane.desired_due = true;
        self.lane.look = true;
        self.all_dirty(now);
        if there {
            self.notices.over(&About::Controller, "Ipv6NotRouted", "");
        } else {
            let vpc = &self.settings.vpc;
            self.notices.stand(About::Controller, "Ipv6NotRouted", "", || {
                format!(
                    "the cluster has an IPv6 pod CIDR, but {vpc} has no IPv6 range: IPv6 pod CIDRs get no route entries; enable IPv6 for the VPC, or give the cluster IPv4 only"
                )
            });
        }
    }

    /// The quota helps to plan; without it the API's refusals do.
    pub(super) fn quota_told(&mut self, answer: Result<Option<usize>, Failure>) {
        self.lane.quota_due = false;
        match answer {
            Ok(quota) => {
                self.lane.pace.succeeded();
                if let Some(quota) = quota {
                    self.lane.full.retain(|_, full| full.limit >= quota);
                }
                if self.lane.quota_read != quota {
                    self.lane.look = true;
                }
                self.lane.quota_read = quota;
                self.notices.over(&About::Controller, "QuotaNotRead", "");
            }
            Err(failure) => {
                self.notices.stand(About::Controller, "QuotaNotRead", "", || {
                    format!(
                        "cannot read the quota of route entries: {failure}; it is learned when a table is full. Allow quotas:GetProductQuota, or set --route-quota"
                    )
                });
            }
        }
    }
}
