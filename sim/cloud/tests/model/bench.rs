//! The model driven without sockets: signed calls at moments of the test's choosing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use loden_aliyun::sign::{self, AccessKey, Unsigned};
use loden_aliyun::{ApiError, Params, Request, vpc};
use loden_sim_cloud::model::{Call, Cloud, SignedCall};
use loden_sim_cloud::topology::{
    EntryKind, EntrySpec, InstanceSpec, NextHop, RouteTableSpec, Settings, TableKind, Topology, VSwitchSpec,
    VpcSpec,
};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

pub(crate) const SYSTEM: &str = "vtb-loden";
pub(crate) const CUSTOM: &str = "vtb-custom";
pub(crate) const GATEWAY: &str = "vtb-gateway";

/// The example topology, with a custom and a gateway table, entries of every kind, and a second VPC.
pub(crate) fn topology() -> Topology {
    let mut topology = Topology::example();
    let first = &mut topology.vpcs[0];
    first.gateways = vec![NextHop::new("NatGateway", "ngw-1")];
    first.vswitches.push(VSwitchSpec::new("vsw-second", "cn-hangzhou-i", "192.168.1.0/24".parse().unwrap()));
    let spec = |destination: &str, kind, hops: Vec<NextHop>| EntrySpec {
        destination: destination.parse().unwrap(),
        next_hops: hops,
        kind,
        name: String::new(),
        description: String::new(),
    };
    first.route_tables = vec![
        RouteTableSpec {
            vswitches: vec!["vsw-second".into()],
            entries: vec![
                spec("10.8.0.0/16", EntryKind::Cen, vec![NextHop::new("Attachment", "tr-1")]),
                spec(
                    "10.9.0.0/16",
                    EntryKind::Custom,
                    vec![NextHop::new("Instance", "i-loden1"), NextHop::new("Instance", "i-loden2")],
                ),
            ],
            ..RouteTableSpec::new(CUSTOM, TableKind::Custom)
        },
        RouteTableSpec::new(GATEWAY, TableKind::Gateway),
    ];
    topology.vpcs.push(VpcSpec {
        vswitches: vec![VSwitchSpec::new("vsw-other", "cn-hangzhou-h", "10.0.0.0/24".parse().unwrap())],
        ..VpcSpec::new("vpc-other", "10.0.0.0/16".parse().unwrap())
    });
    topology.instances.push(InstanceSpec::new("i-other", "vsw-other", Ipv4Addr::new(10, 0, 0, 9)));
    topology
}

pub(crate) struct Bench {
    pub(crate) cloud: Cloud,
    pub(crate) now: OffsetDateTime,
    pub(crate) key: AccessKey,
    calls: u32,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Settings { entry_delay_ms: 2_000, ..Settings::default() })
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let now = datetime!(2026-01-02 03:04:05 UTC);
        let cloud = Cloud::new(&topology(), settings, 7, now).unwrap();
        let key = AccessKey { id: "testid".into(), secret: "testsecret".into(), token: None };
        Self { cloud, now, key, calls: 0 }
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, seconds: i64) {
        self.now += Duration::seconds(seconds);
        self.cloud.advance(self.now);
    }

    pub(crate) fn call<R: Request>(&mut self, request: &R) -> Result<R::Answer, ApiError> {
        self.raw(R::ACTION, R::PRODUCT.version(), &request.to_params())
            .map(|value| serde_json::from_value(value).unwrap())
    }

    pub(crate) fn raw(
        &mut self,
        action: &str,
        version: &str,
        params: &Params,
    ) -> Result<serde_json::Value, ApiError> {
        self.calls += 1;
        let nonce = format!("nonce-{}", self.calls);
        self.send(action, version, params, &nonce, self.now)
    }

    /// One call with everything that a signature depends on in the test's hands.
    pub(crate) fn send(
        &mut self,
        action: &str,
        version: &str,
        params: &Params,
        nonce: &str,
        date: OffsetDateTime,
    ) -> Result<serde_json::Value, ApiError> {
        let unsigned =
            Unsigned { method: "POST", host: "h:1", action, version, params, now: date, nonce, body: b"" };
        let headers: BTreeMap<String, String> = sign::v3(&unsigned, &self.key).headers.into_iter().collect();
        self.answer("POST", params, &headers, b"")
    }

    pub(crate) fn answer(
        &mut self,
        method: &str,
        params: &Params,
        headers: &BTreeMap<String, String>,
        body: &[u8],
    ) -> Result<serde_json::Value, ApiError> {
        let signed = SignedCall { method, path: "/", query: params, params, headers, body };
        self.cloud.answer(&Call { signed, request_id: "R" }, self.now)
    }

    /// Creates one entry in the system table.
    pub(crate) fn create(&mut self, destination: &str, instance: &str) -> Result<String, ApiError> {
        self.call(&single(SYSTEM, destination, instance)).map(|answer| answer.route_entry_id)
    }

    /// All entries of a table, by pages.
    pub(crate) fn list(&mut self, table: &str) -> Vec<vpc::RouteEntry> {
        let mut request = vpc::DescribeRouteEntryList {
            route_table_id: table.into(),
            max_result: Some(100),
            ..vpc::DescribeRouteEntryList::default()
        };
        let mut entries = Vec::new();
        loop {
            let answer = self.call(&request).unwrap();
            entries.extend(answer.entries);
            if answer.next_token.is_empty() {
                return entries;
            }
            request.next_token = Some(answer.next_token);
        }
    }

    pub(crate) fn custom(&mut self, table: &str) -> Vec<(String, vpc::EntryStatus)> {
        self.list(table)
            .into_iter()
            .filter(|entry| entry.kind == "Custom")
            .map(|entry| (entry.destination_cidr_block, entry.status))
            .collect()
    }
}

pub(crate) fn single(table: &str, destination: &str, instance: &str) -> vpc::CreateRouteEntry {
    vpc::CreateRouteEntry {
        route_table_id: table.into(),
        destination_cidr_block: destination.into(),
        next_hop_id: Some(instance.into()),
        ..vpc::CreateRouteEntry::default()
    }
}

pub(crate) fn batch(table: &str, entries: &[(&str, &str)]) -> vpc::CreateRouteEntries {
    vpc::CreateRouteEntries {
        route_entries: entries
            .iter()
            .map(|(destination, instance)| vpc::NewRouteEntry {
                route_table_id: Some(table.into()),
                dst_cidr_block: Some((*destination).into()),
                next_hop: Some((*instance).into()),
                next_hop_type: Some("Instance".into()),
                ip_version: Some("4".into()),
                ..vpc::NewRouteEntry::default()
            })
            .collect(),
        ..vpc::CreateRouteEntries::default()
    }
}

pub(crate) fn batch_delete(table: &str, entries: &[(&str, &str)]) -> vpc::DeleteRouteEntries {
    vpc::DeleteRouteEntries {
        route_entries: entries
            .iter()
            .map(|(destination, instance)| vpc::OldRouteEntry {
                route_table_id: Some(table.into()),
                dst_cidr_block: Some((*destination).into()),
                next_hop: Some((*instance).into()),
                ..vpc::OldRouteEntry::default()
            })
            .collect(),
        ..vpc::DeleteRouteEntries::default()
    }
}
