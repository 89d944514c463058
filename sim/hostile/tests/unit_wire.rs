//! Calls that follow no schema, signed and not, and bytes that are no calls, over loopback: whatever comes, the answer is whole and the
//! emulator goes on.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use loden_aliyun::Params;
use loden_aliyun::sign::{self, AccessKey, Unsigned};
use loden_hostile::cloud::{Sound, judge, topology};
use loden_sim_cloud::run::bind;
use loden_sim_cloud::topology::Config;
use loden_sim_cloud::{Handle, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ACTIONS: [(&str, &str); 12] = [
    ("CreateRouteEntries", "2016-04-28"),
    ("DeleteRouteEntries", "2016-04-28"),
    ("CreateRouteEntry", "2016-04-28"),
    ("DeleteRouteEntry", "2016-04-28"),
    ("ModifyRouteEntry", "2016-04-28"),
    ("DescribeRouteEntryList", "2016-04-28"),
    ("GetVpcRouteEntrySummary", "2016-04-28"),
    ("CreateRouteTable", "2016-04-28"),
    ("AssociateRouteTable", "2016-04-28"),
    ("UnassociateRouteTable", "2016-04-28"),
    ("DescribeInstances", "2014-05-26"),
    ("Nonsense", "2016-04-28"),
];
const NAMES: [&str; 24] = [
    "RouteTableId",
    "DestinationCidrBlock",
    "NextHopId",
    "NextHopType",
    "NewNextHopId",
    "RouteEntryId",
    "VpcId",
    "VSwitchId",
    "MaxResult",
    "NextToken",
    "ClientToken",
    "DryRun",
    "RegionId",
    "Format",
    "RouteEntries.1.RouteTableId",
    "RouteEntries.1.DstCidrBlock",
    "RouteEntries.1.NextHop",
    "RouteEntries.1.NextHopType",
    "RouteEntries.4294967295.RouteTableId",
    "RouteEntries.1.1.1.Name",
    "RouteEntries.-1.Name",
    "NextHopList.2.NextHopId",
    "DestCidrBlockList.1",
    "Description",
];
const VALUES: [&str; 24] = [
    "vtb-main",
    "vtb-custom",
    "vtb-gateway",
    "vpc-loden",
    "vsw-loden",
    "i-loden1",
    "i-other",
    "Instance",
    "NatGateway",
    "ngw-1",
    "172.20.1.0/24",
    "172.20.2.0/24",
    "0.0.0.0/0",
    "192.168.0.0/24",
    "2001:db8::/64",
    "100.64.0.0/10",
    "true",
    "-1",
    "99999999999999999999",
    "XML",
    "\u{0}\u{1}<&>\r\n",
    "\u{fffd}\u{1f980}",
    "http://x",
    "",
];
const RIGHT_ONE: &str =
    "RouteTableId=vtb-main&DestinationCidrBlock=172.20.1.0/24&NextHopId=i-loden1&NextHopType=Instance";
const RIGHT_BATCH: &str = "RouteEntries.1.RouteTableId=vtb-main&RouteEntries.1.DstCidrBlock=172.20.2.0/24&RouteEntries.1.NextHop=i-loden1&RouteEntries.1.NextHopType=Instance";
const PARTS: [&str; 16] = [
    "&",
    "=",
    "%",
    "%ff",
    "%00",
    ".1.",
    "..",
    "RouteEntries",
    "RouteTableId=vtb-main",
    "Version=2016-04-28",
    "Timestamp=0",
    "Signature=",
    "99999999999999999999",
    "%F0%9F%A6%80",
    "AccessKeyId=testid",
    "+",
];

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % count
    }

    fn roll<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.up_to(of.len())]
    }

    fn noise(&mut self) -> String {
        let length = *self.roll(&[0, 1, 2, 5, 9, 30]);
        (0..length).map(|_| *self.roll(&PARTS)).collect()
    }

    /// Parameters of anything, or those of a right creation or deletion with something else among them.
    fn params(&mut self) -> Params {
        let mut params = Params::new();
        let right = *self.roll(&["", RIGHT_ONE, RIGHT_BATCH]);
        params.read_encoded(right);
        for _ in 0..self.up_to(4) {
            params.set(*self.roll(&NAMES), *self.roll(&VALUES));
        }
        if self.up_to(20) == 0 {
            params.set(*self.roll(&NAMES), "x".repeat(20_000));
        }
        params
    }

    /// A call that nobody signed.
    fn unsigned(&mut self) -> Vec<u8> {
        let method = *self.roll(&["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "X-Y"]);
        let path = *self.roll(&["/", "/", "/", "//", "/a/b", "/%00"]);
        let (query, body) = (format!("Action={}&{}", self.roll(&ACTIONS).0, self.noise()), self.noise());
        let kind = *self.roll(&["application/x-www-form-urlencoded", "application/json", "x/y"]);
        let headers = *self.roll(&[
            "",
            "Authorization: ACS3-HMAC-SHA256 Credential=testid,SignedHeaders=host,Signature=00\r\n",
            "Authorization: ,,,==\r\nx-acs-date: yesterday\r\n",
            "accept: text/xml\r\nx-acs-action: DescribeVpcs\r\nx-acs-action: DescribeVpcs\r\n",
            "x-acs-version: \u{ff}\u{1f980}\r\nx-acs-security-token: ;;\r\n",
        ]);
        format!(
            "{method} {path}?{query} HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    /// A call of something, with a right signature.
    fn signed(&mut self, nonce: u32) -> Vec<u8> {
        let (action, version) = *self.roll(&ACTIONS);
        let (mut params, nonce, now) = (self.params(), nonce.to_string(), time::OffsetDateTime::now_utc());
        let key = AccessKey { id: "testid".to_owned(), secret: "testsecret".to_owned(), token: None };
        if self.up_to(2) == 0 {
            let request = Unsigned {
                method: "POST",
                host: "h",
                action,
                version,
                params: &params,
                now,
                nonce: &nonce,
                body: b"",
            };
            let signed = sign::v3(&request, &key);
            let headers: String =
                signed.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            return format!("POST /?{} HTTP/1.1\r\n{headers}Content-Length: 0\r\n\r\n", signed.query)
                .into_bytes();
        }
        for (name, value) in [
            ("Action", action),
            ("Version", version),
            ("AccessKeyId", "testid"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("SignatureNonce", &nonce),
            ("Timestamp", &sign::format_date(now)),
        ] {
            params.set(name, value);
        }
        let signature = sign::v1("POST", &params, &key.secret);
        params.set("Signature", signature);
        let form = params.encoded();
        format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        )
        .into_bytes()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let count = self.up_to(200);
        (0..count).map(|_| u8::try_from(self.up_to(256)).unwrap()).collect()
    }
}

struct Running {
    api: SocketAddr,
    handle: Handle,
    sound: Sound,
}

async fn start() -> Running {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings { entry_delay_ms: 1, read_lag_ms: 5, ..Settings::default() };
    let config = Config {
        api: free,
        metadata: free,
        control: free,
        settings,
        topology: topology(),
        ..Config::default()
    };
    let bound = bind(config).await.unwrap();
    let (api, handle) = (bound.endpoints().api, bound.handle());
    tokio::spawn(bound.serve());
    let sound = Sound::of(&topology(), &handle.snapshot());
    Running { api, handle, sound }
}

/// Sends what is given and no more; answers how many answers came, all of them whole.
async fn exchange(running: &Running, sent: &[u8]) -> usize {
    let mut stream = TcpStream::connect(running.api).await.unwrap();
    // An emulator that has heard enough may hang up meanwhile.
    let _ = stream.write_all(sent).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
    let about = || format!("{:?} -> {:?}", String::from_utf8_lossy(sent), String::from_utf8_lossy(&answer));
    assert!(read.is_ok() || !answer.is_empty(), "{read:?}: {}", about());
    judge(sent, &answer).unwrap_or_else(|broken| panic!("{broken}: {}", about()))
}

#[tokio::test]
async fn nobody_without_a_key_changes_anything() {
    let running = start().await;
    let before = running.handle.snapshot();
    let mut dice = Dice(20_260);
    for _ in 0..300 {
        let call = dice.unsigned();
        assert_eq!(exchange(&running, &call).await, 1, "{:?}", String::from_utf8_lossy(&call));
    }
    assert_eq!(running.handle.snapshot(), before);
}

#[tokio::test]
async fn calls_in_a_row_cut_short_and_bytes_are_answered() {
    let running = start().await;
    let mut dice = Dice(4_711);
    let (mut nonce, mut seen) = (0, BTreeSet::new());
    for _ in 0..400 {
        let count = 1 + dice.up_to(4);
        let mut sent = Vec::new();
        for _ in 0..count {
            nonce += 1;
            sent.extend(if dice.up_to(3) == 0 { dice.unsigned() } else { dice.signed(nonce) });
        }
        match dice.up_to(4) {
            0 => {
                sent.truncate(dice.up_to(sent.len()));
                assert!(exchange(&running, &sent).await <= count);
            }
            1 => {
                let at = dice.up_to(sent.len());
                sent.splice(at..at, dice.bytes());
                exchange(&running, &sent).await;
            }
            _ => assert_eq!(exchange(&running, &sent).await, count, "{:?}", String::from_utf8_lossy(&sent)),
        }
        let snapshot = running.handle.snapshot();
        running.sound.check(&snapshot).unwrap();
        let entries = &snapshot.table("vtb-main").unwrap().entries;
        seen.insert(entries.iter().filter(|entry| entry.kind.as_str() == "Custom").count());
    }
    assert!(seen.len() > 1, "no call ever did something: {seen:?}");
}
