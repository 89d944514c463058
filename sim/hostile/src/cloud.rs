//! The emulated cloud: whatever is sent to it, it answers wholly and stays sound.
//!
//! An input is text, one step a line:
//!
//! ```text
//! >CreateRouteEntry RouteTableId=vtb-main&…   a call with a signature of version 3
//! <CreateRouteEntry RouteTableId=vtb-main&…   the same with version 1
//! ?GET /?Action=DescribeVpcs&…                a call that nobody signed
//! +1500                                       the clock goes on, in milliseconds
//! !{"readLagMs":500}                          settings
//! @vpc-main Pending                           an object's status; without one it is well again
//! =GET / HTTP/1.1                             this and all that follows goes over a connection, byte by byte
//! ```
//!
//! Lines of another kind are left out.

mod answers;
mod sound;

use std::collections::BTreeMap;

use loden_aliyun::sign::{self, AccessKey, Unsigned};
use loden_aliyun::{Params, Product};
use loden_sim_cloud::model::{Call, Cloud, SignedCall};
use loden_sim_cloud::topology::{EntryKind, EntrySpec, InstanceSpec, InterfaceSpec, NextHop};
use loden_sim_cloud::topology::{RouteTableSpec, TableKind, VSwitchSpec, VpcSpec};
use loden_sim_cloud::{Emulator, Settings, Topology};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Verdict, promise};

pub use answers::{is_whole, judge};
pub use sound::Sound;

/// Steps of one input that are taken; more teach nothing.
const STEPS: usize = 64;
/// Longest step of the clock, in milliseconds.
const LONGEST: i64 = 100_000_000;
/// Custom entries that the system table takes, few enough that an input fills it.
const QUOTA: u32 = 4;
/// The IDs under which calls are answered here.
const REQUEST_ID: &str = "00000000-0000-0000-0000-000000000000";

/// A cloud with something of every kind in it.
#[must_use]
pub fn topology() -> Topology {
    let mut topology = Topology::example();
    let hop = NextHop::new;
    let entry = |destination: &str, kind, next_hops| {
        destination.parse().ok().map(|destination| EntrySpec {
            destination,
            next_hops,
            kind,
            name: String::new(),
            description: String::new(),
        })
    };
    if let Some(vpc) = topology.vpcs.first_mut() {
        vpc.ipv6_cidr = "2001:db8::/56".parse().ok();
        vpc.gateways = vec![hop("NatGateway", "ngw-1"), hop("HaVip", "havip-1"), hop("VpnGateway", "vpn-1")];
        let second = "192.168.1.0/24".parse().ok().map(|cidr| VSwitchSpec::new("vsw-second", "z", cidr));
        vpc.vswitches.extend(second);
        vpc.route_tables = vec![
            RouteTableSpec { quota: Some(QUOTA), ..RouteTableSpec::new("vtb-main", TableKind::System) },
            RouteTableSpec {
                vswitches: vec!["vsw-second".to_owned()],
                entries: [
                    entry("10.8.0.0/16", EntryKind::Cen, vec![hop("Attachment", "tr-1")]),
                    entry(
                        "10.9.0.0/16",
                        EntryKind::Custom,
                        vec![hop("Instance", "i-loden1"), hop("Instance", "i-loden2")],
                    ),
                ]
                .into_iter()
                .flatten()
                .collect(),
                ..RouteTableSpec::new("vtb-custom", TableKind::Custom)
            },
            RouteTableSpec::new("vtb-gateway", TableKind::Gateway),
        ];
    }
    if let Some(instance) = topology.instances.first_mut() {
        let address = std::net::Ipv4Addr::new(192, 168, 1, 11);
        instance.interfaces.push(InterfaceSpec::new("vsw-second", address));
    }
    if let (Ok(cidr), Ok(inner)) = ("10.0.0.0/16".parse(), "10.0.0.0/24".parse()) {
        let vswitches = vec![VSwitchSpec::new("vsw-other", "z", inner)];
        topology.vpcs.push(VpcSpec { vswitches, ..VpcSpec::new("vpc-other", cidr) });
        let address = std::net::Ipv4Addr::new(10, 0, 0, 9);
        topology.instances.push(InstanceSpec::new("i-other", "vsw-other", address));
    }
    topology
}

/// Does what an input says.
///
/// Promised: every answer is whole, be it a result or an error; no table has two entries for one destination, more entries than its quota, or an
/// entry that leads to something that is not there; what is under way ends; nothing that is not a user's is changed; a state that is kept
/// can be read back; and in the end the cloud still answers.
///
/// # Errors
/// What was promised and does not hold.
pub fn cloud(data: &[u8]) -> Verdict {
    let topology = topology();
    let begin = OffsetDateTime::from_unix_timestamp(1_767_323_045).map_err(|error| error.to_string())?;
    let settings = Settings { entry_delay_ms: 500, ..Settings::default() };
    let cloud = Cloud::new(&topology, settings, 7, begin).map_err(|error| error.to_string())?;
    let sound = Sound::of(&topology, &cloud.snapshot());
    let mut run = Run { cloud, now: begin, nonces: 0 };
    let mut rest = data;
    for _ in 0..STEPS {
        if let Some(raw) = rest.strip_prefix(b"=") {
            run.cloud = over_a_connection(&run.cloud, raw)?;
            sound.check(&run.cloud.snapshot())?;
            break;
        }
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        run.step(&String::from_utf8_lossy(line))?;
        sound.check(&run.cloud.snapshot())?;
        match after.split_first() {
            Some((_, after)) => rest = after,
            None => break,
        }
    }
    run.end()
}

struct Run {
    cloud: Cloud,
    now: OffsetDateTime,
    nonces: u32,
}

impl Run {
    fn step(&mut self, line: &str) -> Verdict {
        let Some(kind) = line.chars().next() else { return Ok(()) };
        let text = line.get(kind.len_utf8()..).unwrap_or_default();
        match kind {
            '>' | '<' => {
                let (action, query) = text.split_once(' ').unwrap_or((text, ""));
                let mut params = Params::new();
                params.read_encoded(query);
                if kind == '>' { self.call_v3(action, &params) } else { self.call_v1(action, params) }
            }
            '?' => {
                let (method, target) = text.split_once(' ').unwrap_or(("GET", text));
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let mut params = Params::new();
                params.read_encoded(query);
                self.send(method, path, &params, &BTreeMap::new())
            }
            '+' => {
                let step = text.trim().parse::<i64>().unwrap_or(0).clamp(0, LONGEST);
                self.now += Duration::milliseconds(step);
                self.cloud.advance(self.now);
                Ok(())
            }
            '!' => {
                let given = serde_json::from_str(text).ok();
                let settings = given.and_then(|given| self.cloud.settings().with(given).ok());
                settings.into_iter().for_each(|settings| self.cloud.set_settings(settings));
                Ok(())
            }
            '@' => {
                let (id, status) = text.split_once(' ').unwrap_or((text, ""));
                let status = Some(status.to_owned()).filter(|status| !status.is_empty());
                // What is not there has no status, and a refusal is as good an answer.
                let _ = self.cloud.set_status(id, status);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn nonce(&mut self) -> String {
        self.nonces += 1;
        format!("nonce-{}", self.nonces)
    }

    fn call_v3(&mut self, action: &str, params: &Params) -> Verdict {
        let (nonce, version) = (self.nonce(), product_of(action).version());
        let unsigned = Unsigned {
            method: "POST",
            host: "h",
            action,
            version,
            params,
            now: self.now,
            nonce: &nonce,
            body: b"",
        };
        let headers = sign::v3(&unsigned, &key()).headers.into_iter().collect();
        self.send("POST", "/", params, &headers)
    }

    fn call_v1(&mut self, action: &str, mut params: Params) -> Verdict {
        for (name, value) in [
            ("Action", action),
            ("Version", product_of(action).version()),
            ("AccessKeyId", "testid"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("SignatureNonce", &self.nonce()),
            ("Timestamp", &sign::format_date(self.now)),
        ] {
            params.set(name, value);
        }
        params.remove("Signature");
        let signature = sign::v1("POST", &params, &key().secret);
        params.set("Signature", signature);
        self.send("POST", "/", &params, &BTreeMap::new())
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        params: &Params,
        headers: &BTreeMap<String, String>,
    ) -> Verdict {
        let signed = SignedCall { method, path, query: params, params, headers, body: b"" };
        let call = Call { signed, request_id: REQUEST_ID };
        let action = call.action().to_owned();
        match self.cloud.answer(&call, self.now) {
            Ok(answer) => promise(answer.get("RequestId").is_some_and(|id| id == REQUEST_ID), || {
                format!("{action} answers {answer}, which has not the call's RequestId")
            }),
            Err(error) => promise(
                (400..600).contains(&error.http_status)
                    && is_code(&error.code)
                    && !error.message.trim().is_empty(),
                || format!("{action} answers an error that is not whole: {error:?}"),
            ),
        }
    }

    /// Everything under way ends, and a right call is answered.
    fn end(&mut self) -> Verdict {
        let kept = keep(&self.cloud)?;
        promise(kept.snapshot() == self.cloud.snapshot(), || "a kept state reads differently".to_owned())?;
        // A delay of centuries, asked for and got, is no wrong of the cloud's.
        if self.cloud.settings().entry_delay_ms < LONGEST.unsigned_abs() {
            self.now += Duration::milliseconds(LONGEST);
            self.cloud.advance(self.now);
            promise(self.cloud.next_deadline().is_none(), || {
                format!("something never ends: {:?}", self.cloud.next_deadline())
            })?;
        }
        self.cloud.set_settings(Settings::default());
        let mut params = Params::new();
        params.set("RouteTableId", "vtb-main");
        self.call_v3("DescribeRouteEntryList", &params)?;
        let calls = self.cloud.calls().get("DescribeRouteEntryList");
        promise(calls.is_some(), || "the last call was not taken for one".to_owned())
    }
}

fn keep(cloud: &Cloud) -> Result<Cloud, String> {
    let state = cloud.save().map_err(|error| format!("the state cannot be kept: {error}"))?;
    Cloud::restore(state).map_err(|error| format!("the kept state is refused: {error}"))
}

/// Letters, digits, and what stands between them in the vendor's codes.
fn is_code(code: &str) -> bool {
    !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn key() -> AccessKey {
    AccessKey { id: "testid".to_owned(), secret: "testsecret".to_owned(), token: None }
}

fn product_of(action: &str) -> Product {
    match action {
        "DescribeInstances" | "DescribeNetworkInterfaces" | "ModifyNetworkInterfaceAttribute" => Product::Ecs,
        "GetProductQuota" => Product::Quotas,
        "AssumeRoleWithOIDC" => Product::Sts,
        _ => Product::Vpc,
    }
}

/// Sends bytes over a connection; answers the cloud as it is afterwards.
fn over_a_connection(cloud: &Cloud, raw: &[u8]) -> Result<Cloud, String> {
    let trouble = |error: &dyn std::fmt::Display| format!("cannot talk to the emulator: {error}");
    let mut state = cloud.save().map_err(|error| trouble(&error))?;
    // An answer that is held back would hold back whoever waits for it here.
    if let Some(latency) = state.pointer_mut("/cloud/settings/latencyMs") {
        *latency = 0.into();
    }
    let emulator = Emulator::restore(state).map_err(|error| trouble(&error))?;
    let handle = emulator.handle();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| trouble(&e))?;
    let answers = runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(1 << 22);
        let talk = async {
            // Whoever hears nonsense may hang up before all of it is said.
            let _ = near.write_all(raw).await;
            let _ = near.shutdown().await;
            let mut answers = Vec::new();
            near.read_to_end(&mut answers).await.map(|_| answers)
        };
        tokio::join!(handle.serve_api_on(far), talk).1
    });
    judge(raw, &answers.map_err(|error| trouble(&error))?)?;
    let state = handle.save().map_err(|error| trouble(&error))?;
    Cloud::restore(state).map_err(|error| format!("the kept state is refused: {error}"))
}
