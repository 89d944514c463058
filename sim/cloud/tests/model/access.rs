//! Who may call: signatures of both versions, nonces, the clock, temporary credentials, unknown actions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::bench::{Bench, SYSTEM, single};
use loden_aliyun::metadata::{RoleCredentials, TOKEN_HEADER, TOKEN_PATH, TOKEN_TTL_HEADER};
use loden_aliyun::sign::{self, AccessKey, Unsigned};
use loden_aliyun::{ApiError, Params, Request, vpc};
use loden_sim_cloud::model::Cloud;
use loden_sim_cloud::model::MetadataCall;
use loden_sim_cloud::topology::{AccessKeySpec, Settings};
use proptest::prelude::*;
use time::Duration;

const VERSION: &str = "2016-04-28";

fn code<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
    result.unwrap_err().code
}

fn describe() -> Params {
    vpc::DescribeVpcs::default().to_params()
}

#[test]
fn a_wrong_secret_is_told() {
    let mut bench = Bench::new();
    bench.key.secret = "wrong".into();
    let error = bench.call(&vpc::DescribeVpcs::default()).unwrap_err();
    assert_eq!((error.http_status, error.code.as_str()), (400, "SignatureDoesNotMatch"));
    assert!(error.message.starts_with("Specified signature is not matched with our calculation."));
    assert!(error.message.contains("ACS3-HMAC-SHA256\n"), "it shows what was signed: {}", error.message);
}

#[test]
fn unknown_and_disabled_keys() {
    let mut bench = Bench::new();
    bench.key.id = "nobody".into();
    assert_eq!(code(bench.call(&vpc::DescribeVpcs::default())), "InvalidAccessKeyId.NotFound");
    bench.cloud.add_access_key(AccessKeySpec { disabled: true, ..AccessKeySpec::new("old", "s") }).unwrap();
    bench.key = AccessKey { id: "old".into(), secret: "s".into(), token: None };
    assert_eq!(code(bench.call(&vpc::DescribeVpcs::default())), "InvalidAccessKeyId.Inactive");
}

#[test]
fn a_nonce_serves_once_within_the_window() {
    let mut bench = Bench::new();
    let params = describe();
    bench.send("DescribeVpcs", VERSION, &params, "n", bench.now).unwrap();
    assert_eq!(code(bench.send("DescribeVpcs", VERSION, &params, "n", bench.now)), "SignatureNonceUsed");
    bench.wait(899);
    // The first request itself, sent again.
    let then = bench.now - Duration::seconds(899);
    assert_eq!(code(bench.send("DescribeVpcs", VERSION, &params, "n", then)), "SignatureNonceUsed");
    bench.wait(1_000);
    bench.send("DescribeVpcs", VERSION, &params, "n", bench.now).unwrap();
}

#[test]
fn a_nonce_is_not_used_up_by_somebody_without_the_secret() {
    let mut bench = Bench::new();
    let right = bench.key.clone();
    bench.key.secret = "wrong".into();
    assert_eq!(
        code(bench.send("DescribeVpcs", VERSION, &describe(), "n", bench.now)),
        "SignatureDoesNotMatch"
    );
    bench.key = right;
    bench.send("DescribeVpcs", VERSION, &describe(), "n", bench.now).unwrap();
}

#[test]
fn the_clock_may_be_a_quarter_of_an_hour_off() {
    let mut bench = Bench::new();
    for (seconds, fits) in [(900, true), (-900, true), (901, false), (-901, false)] {
        let date = bench.now + Duration::seconds(seconds);
        let result = bench.send("DescribeVpcs", VERSION, &describe(), &format!("n{seconds}"), date);
        assert_eq!(result.is_ok(), fits, "{seconds}");
        if let Err(error) = result {
            assert_eq!(
                (error.code.as_str(), error.message.as_str()),
                ("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
            );
        }
    }
}

/// The headers of a right request, for a test to spoil.
fn headers(bench: &Bench, params: &Params, method: &str, body: &[u8]) -> BTreeMap<String, String> {
    let unsigned = Unsigned {
        method,
        host: "h",
        action: "DescribeVpcs",
        version: VERSION,
        params,
        now: bench.now,
        nonce: "n",
        body,
    };
    sign::v3(&unsigned, &bench.key).headers.into_iter().collect()
}

#[test]
fn what_was_changed_on_the_way_does_not_verify() {
    let mut bench = Bench::new();
    let params = describe();
    let right = headers(&bench, &params, "POST", b"");
    let mut other = params.clone();
    other.set("VpcId", "vpc-other");
    assert_eq!(code(bench.answer("POST", &other, &right, b"")), "SignatureDoesNotMatch");
    assert_eq!(code(bench.answer("GET", &params, &right, b"")), "SignatureDoesNotMatch");
    assert_eq!(code(bench.answer("POST", &params, &right, b"body")), "SignatureDoesNotMatch");
    let mut action = right.clone();
    action.insert("x-acs-action".into(), "DescribeVSwitches".into());
    assert_eq!(code(bench.answer("POST", &params, &action, b"")), "SignatureDoesNotMatch");
    let mut extra = right.clone();
    extra.insert("x-acs-security-token".into(), "t".into());
    assert_eq!(code(bench.answer("POST", &params, &extra, b"")), "IncompleteSignature");
    let mut missing = right.clone();
    missing.remove("x-acs-date");
    assert_eq!(code(bench.answer("POST", &params, &missing, b"")), "IncompleteSignature");
    bench.answer("POST", &params, &right, b"").unwrap();
}

#[test]
fn the_clients_own_list_of_signed_headers_counts() {
    let mut bench = Bench::new();
    let params = describe();
    let mut all: Vec<(String, String)> = headers(&bench, &params, "GET", b"")
        .into_iter()
        .filter(|(name, _)| name != "authorization")
        .chain([("accept".into(), "application/json".into()), ("user-agent".into(), "  sdk  ".into())])
        .collect();
    all.sort();
    let canonical = sign::Canonical {
        method: "GET",
        path: "/",
        params: &params,
        headers: &all,
        body_sha256: &sign::body_sha256(b""),
    };
    // What a client would sign; HMAC itself is checked by vectors elsewhere.
    let candidates = [("testsecret", true), ("wrong", false)];
    for (secret, right) in candidates {
        let signature = {
            use hmac_of::hmac_sha256_hex;
            hmac_sha256_hex(secret, &canonical.string_to_sign())
        };
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        let mut sent: BTreeMap<String, String> = all.iter().cloned().collect();
        sent.insert(
            "authorization".into(),
            format!(
                "ACS3-HMAC-SHA256 Credential=testid,SignedHeaders={},Signature={signature}",
                names.join(";")
            ),
        );
        assert_eq!(bench.answer("GET", &params, &sent, b"").is_ok(), right);
    }
}

/// HMAC written out, so that the emulator is not verified by its own code.
mod hmac_of {
    use sha2::{Digest, Sha256};

    pub(super) fn hmac_sha256_hex(secret: &str, text: &str) -> String {
        let mut key = [0_u8; 64];
        key[..secret.len()].copy_from_slice(secret.as_bytes());
        let inner = Sha256::digest([key.map(|b| b ^ 0x36).as_slice(), text.as_bytes()].concat());
        let outer = Sha256::digest([key.map(|b| b ^ 0x5c).as_slice(), inner.as_slice()].concat());
        outer.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[test]
fn version_1_signatures_are_verified_too() {
    let mut bench = Bench::new();
    let signed = |secret: &str, nonce: &str| {
        let mut params = describe();
        for (name, value) in [
            ("Action", "DescribeVpcs"),
            ("Version", VERSION),
            ("Format", "JSON"),
            ("AccessKeyId", "testid"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("SignatureType", ""),
            ("SignatureNonce", nonce),
            ("Timestamp", "2026-01-02T03:04:05Z"),
        ] {
            params.set(name, value);
        }
        let signature = sign::v1("POST", &params, secret);
        params.set("Signature", signature);
        params
    };
    let none = BTreeMap::new();
    bench.answer("POST", &signed("testsecret", "a"), &none, b"").unwrap();
    assert_eq!(code(bench.answer("POST", &signed("testsecret", "a"), &none, b"")), "SignatureNonceUsed");
    assert_eq!(code(bench.answer("POST", &signed("wrong", "b"), &none, b"")), "SignatureDoesNotMatch");
    let mut unsigned = signed("testsecret", "c");
    unsigned.remove("Signature");
    assert_eq!(code(bench.answer("POST", &unsigned, &none, b"")), "MissingSignature");
}

#[test]
fn unknown_actions_and_versions() {
    let mut bench = Bench::new();
    let error = bench.raw("LaunchRocket", VERSION, &Params::new()).unwrap_err();
    assert_eq!((error.http_status, error.code.as_str()), (404, "InvalidAction.NotFound"));
    assert_eq!(code(bench.raw("DescribeVpcs", "2014-05-26", &Params::new())), "InvalidVersion");
    assert_eq!(code(bench.answer("POST", &Params::new(), &BTreeMap::new(), b"")), "MissingAction");
    assert_eq!(code(bench.answer("PUT", &Params::new(), &BTreeMap::new(), b"")), "UnsupportedHTTPMethod");
}

fn ask(bench: &mut Bench, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let peer: IpAddr = "192.168.0.11".parse().unwrap();
    let answer =
        bench.cloud.answer_metadata(&MetadataCall { peer, method, path, headers: &headers }, bench.now);
    (answer.status, answer.body)
}

fn item(bench: &mut Bench, name: &str) -> String {
    let (status, body) = ask(bench, "GET", &format!("/latest/meta-data/{name}"), &[]);
    assert_eq!(status, 200, "{name}: {body}");
    body
}

#[test]
fn role_credentials_are_accepted_rotate_and_expire() {
    let mut bench = Bench::new();
    assert_eq!(item(&mut bench, "ram/security-credentials/"), "LodenNode");
    let fetch = |bench: &mut Bench| -> RoleCredentials {
        serde_json::from_str(&item(bench, "ram/security-credentials/LodenNode")).unwrap()
    };
    let first = fetch(&mut bench);
    assert_eq!(fetch(&mut bench), first, "young credentials are given out again");
    bench.key = first.session.access_key();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();

    bench.key.token = None;
    assert_eq!(code(bench.call(&vpc::DescribeVpcs::default())), "MissingSecurityToken");
    bench.key.token = Some("other".into());
    assert_eq!(code(bench.call(&vpc::DescribeVpcs::default())), "InvalidSecurityToken.MismatchWithAccessKey");

    bench.wait(10_801);
    let second = fetch(&mut bench);
    assert_ne!(second.session.access_key_id, first.session.access_key_id, "half of their life is over");
    bench.key = first.session.access_key();
    bench.call(&vpc::DescribeVpcs::default()).unwrap();
    bench.wait(10_800);
    assert_eq!(code(bench.call(&vpc::DescribeVpcs::default())), "InvalidSecurityToken.Expired");
    bench.key = second.session.access_key();
    bench.call(&vpc::DescribeVpcs::default()).unwrap();
    bench.cloud.expire_role_credentials(bench.now);
    assert_eq!(code(bench.call(&vpc::DescribeVpcs::default())), "InvalidSecurityToken.Expired");
    bench.key = fetch(&mut bench).session.access_key();
    bench.call(&vpc::DescribeVpcs::default()).unwrap();
}

#[test]
fn metadata_tokens() {
    let mut bench = Bench::new();
    for ttl in ["0", "21601", "-1", "x", ""] {
        assert_eq!(ask(&mut bench, "PUT", TOKEN_PATH, &[(TOKEN_TTL_HEADER, ttl)]).0, 400, "{ttl}");
    }
    assert_eq!(ask(&mut bench, "PUT", TOKEN_PATH, &[]).0, 400);
    assert_eq!(ask(&mut bench, "GET", TOKEN_PATH, &[(TOKEN_TTL_HEADER, "60")]).0, 405);
    let forwarded = [(TOKEN_TTL_HEADER, "60"), ("x-forwarded-for", "10.0.0.1")];
    assert_eq!(ask(&mut bench, "PUT", TOKEN_PATH, &forwarded).0, 403);
    let (status, token) = ask(&mut bench, "PUT", TOKEN_PATH, &[(TOKEN_TTL_HEADER, "60")]);
    assert_eq!(status, 200);
    let path = "/latest/meta-data/instance-id";
    assert_eq!(ask(&mut bench, "GET", path, &[(TOKEN_HEADER, &token)]), (200, "i-loden1".into()));
    assert_eq!(ask(&mut bench, "GET", path, &[(TOKEN_HEADER, "forged")]).0, 401);
    assert_eq!(ask(&mut bench, "GET", path, &[]).0, 200, "tokens are voluntary unless hardened");
    bench.cloud.set_settings(Settings { hardened_metadata: true, ..Settings::default() });
    assert_eq!(ask(&mut bench, "GET", path, &[]).0, 403);
    assert_eq!(ask(&mut bench, "GET", path, &[(TOKEN_HEADER, &token)]).0, 200);
    bench.wait(60);
    assert_eq!(ask(&mut bench, "GET", path, &[(TOKEN_HEADER, &token)]).0, 401);
}

#[test]
fn metadata_items() {
    let mut bench = Bench::new();
    let mac = item(&mut bench, "mac");
    for (name, value) in [
        ("region-id", "cn-hangzhou"),
        ("zone-id", "cn-hangzhou-h"),
        ("instance-id", "i-loden1"),
        ("vpc-id", "vpc-loden"),
        ("vpc-cidr-block", "192.168.0.0/16"),
        ("vswitch-id", "vsw-loden"),
        ("vswitch-cidr-block", "192.168.0.0/24"),
        ("private-ipv4", "192.168.0.11"),
        ("instance/instance-type", "ecs.g7.large"),
    ] {
        assert_eq!(item(&mut bench, name), value, "{name}");
    }
    assert_eq!(item(&mut bench, "network/interfaces/macs/"), format!("{mac}/"));
    for (name, value) in [
        ("network-interface-id", "eni-loden1"),
        ("primary-ip-address", "192.168.0.11"),
        ("private-ipv4s", "[\"192.168.0.11\"]"),
        ("netmask", "255.255.255.0"),
        ("gateway", "192.168.0.253"),
        ("vswitch-cidr-block", "192.168.0.0/24"),
    ] {
        assert_eq!(item(&mut bench, &format!("network/interfaces/macs/{mac}/{name}")), value, "{name}");
    }
    // Every item of the listing is there.
    for name in item(&mut bench, "").lines().filter(|name| !name.ends_with('/')) {
        item(&mut bench, name);
    }
    for (path, status) in [("/latest/meta-data/nothing", 404), ("/latest", 404), ("/", 404)] {
        assert_eq!(ask(&mut bench, "GET", path, &[]).0, status, "{path}");
    }
    assert_eq!(ask(&mut bench, "POST", "/latest/meta-data/mac", &[]).0, 405);
    let stranger = MetadataCall {
        peer: "10.200.0.1".parse().unwrap(),
        method: "GET",
        path: "/latest/meta-data/mac",
        headers: &BTreeMap::new(),
    };
    assert_eq!(bench.cloud.answer_metadata(&stranger, bench.now).status, 404);
    // The same address in another VPC is another instance; an address in IPv6 spelling is the same one.
    let mapped = MetadataCall {
        peer: "::ffff:10.0.0.9".parse().unwrap(),
        path: "/latest/meta-data/instance-id",
        ..stranger
    };
    assert_eq!(bench.cloud.answer_metadata(&mapped, bench.now).body, "i-other");
}

fn garbage_params() -> impl Strategy<Value = Params> {
    let name = prop_oneof![
        "[A-Za-z]{1,12}",
        "RouteEntries\\.[0-9]{1,3}\\.(RouteTableId|DstCidrBlock|NextHop|NextHopType|Name)",
        "(RouteTableId|DestinationCidrBlock|NextHopId|NextHopType|MaxResult|NextToken|InstanceIds|PageSize|DryRun)",
        "(VpcId|VSwitchId|RouteTableName|AssociateType|ClientToken|RouteEntryType|RouteEntryId|RegionId)",
        "(NextHopList|DestCidrBlockList|NetworkInterfaceId|Tag)\\.[0-9]{1,10}(\\.NextHopId)?",
    ];
    let value = prop_oneof![
        ".{0,20}",
        Just(SYSTEM.to_owned()),
        Just("vtb-custom".to_owned()),
        Just("vpc-loden".to_owned()),
        "(vsw-loden|vsw-second|vsw-other|vtb-gateway|once|all|VSwitch|Gateway|cn-hangzhou)",
        "([0-9a-f:]{0,20})/[0-9]{1,3}",
        Just("i-loden1".to_owned()),
        Just("Instance".to_owned()),
        "(172|10|192)\\.(20|168)\\.[0-9]{1,3}\\.0/[0-9]{1,2}",
        "[0-9]{1,12}",
        "(true|False|TRUE)",
    ];
    proptest::collection::btree_map(name, value, 0..12).prop_map(|pairs| pairs.into_iter().collect())
}

const ACTIONS: &[(&str, &str)] = &[
    ("DescribeVpcs", VERSION),
    ("DescribeVpcAttribute", VERSION),
    ("DescribeVSwitches", VERSION),
    ("DescribeRouteTableList", VERSION),
    ("DescribeRouteEntryList", VERSION),
    ("CreateRouteEntry", VERSION),
    ("DeleteRouteEntry", VERSION),
    ("CreateRouteEntries", VERSION),
    ("DeleteRouteEntries", VERSION),
    ("GetVpcRouteEntrySummary", VERSION),
    ("CreateRouteTable", VERSION),
    ("DeleteRouteTable", VERSION),
    ("AssociateRouteTable", VERSION),
    ("UnassociateRouteTable", VERSION),
    ("DescribeInstances", "2014-05-26"),
    ("DescribeNetworkInterfaces", "2014-05-26"),
    ("ModifyNetworkInterfaceAttribute", "2014-05-26"),
];

proptest! {
    /// Signed nonsense is answered, errors are whole, and tables keep unique destinations within their quota.
    #[test]
    fn signed_garbage_is_answered(calls in proptest::collection::vec((0..ACTIONS.len(), garbage_params()), 1..12)) {
        let mut bench = Bench::with(Settings { entry_delay_ms: 500, ..Settings::default() });
        bench.cloud.set_quota(SYSTEM, 3).unwrap();
        for (index, params) in calls {
            let (action, version) = ACTIONS[index];
            if let Err(error) = bench.raw(action, version, &params) {
                prop_assert!((400..600).contains(&error.http_status), "{error}");
                prop_assert!(!error.code.is_empty() && !error.message.is_empty());
            }
            bench.wait(1);
            let snapshot = bench.cloud.snapshot();
            for vswitch in snapshot.vpcs.iter().flat_map(|vpc| &vpc.vswitches) {
                prop_assert!(snapshot.table(&vswitch.table).is_some(), "{vswitch:?} has no table");
            }
            let table = snapshot.table(SYSTEM).unwrap();
            prop_assert!(table.used <= 3);
            let mut destinations: Vec<_> = table.entries.iter().map(|entry| entry.destination).collect();
            destinations.sort();
            destinations.dedup();
            prop_assert_eq!(destinations.len(), table.entries.len());
        }
        let kept = Cloud::restore(bench.cloud.save().unwrap()).unwrap();
        prop_assert_eq!(kept.snapshot(), bench.cloud.snapshot());
    }

    #[test]
    fn unsigned_garbage_is_refused(
        method in "[A-Z]{1,6}",
        headers in proptest::collection::btree_map("(authorization|x-acs-action|x-acs-version|x-acs-date|host|[a-z-]{1,10})", ".{0,60}", 0..8),
        params in garbage_params(),
        body in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bench = Bench::new();
        let error = bench.answer(&method, &params, &headers, &body).unwrap_err();
        prop_assert!((400..600).contains(&error.http_status));
        prop_assert!(!error.code.is_empty());
    }

    #[test]
    fn metadata_garbage_is_answered(method in "[A-Z]{1,6}", path in "/(latest/(meta-data|api)/)?.{0,30}", token in ".{0,20}") {
        let mut bench = Bench::new();
        let (status, _) = ask(&mut bench, &method, &path, &[(TOKEN_HEADER, &token), (TOKEN_TTL_HEADER, &token)]);
        prop_assert!((200..500).contains(&status));
    }
}

#[test]
fn a_call_before_and_after_a_refusal_is_counted() {
    let mut bench = Bench::new();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    assert!(bench.call(&single(SYSTEM, "172.20.1.0/24", "i-loden1")).is_err());
    assert_eq!(bench.cloud.calls().get("CreateRouteEntry"), Some(&2));
}
