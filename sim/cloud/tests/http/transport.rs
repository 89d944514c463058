//! What is sent and answered, byte by byte.

use std::num::NonZeroU32;
use std::time::Duration;

use loden_aliyun::Params;
use loden_aliyun::sign::{self, AccessKey, Unsigned};
use loden_routes::port::{FailureClass, ReadRouteTables};
use loden_sim_cloud::topology::{Per, RateLimit, Settings};

use crate::surroundings::{TABLE, quick, raw, start, table};

/// Head and body of the answer to a request.
fn halves(answer: &str) -> (&str, &str) {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// The text between a tag and its end.
fn tag<'a>(body: &'a str, name: &str) -> &'a str {
    let (_, rest) = body.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name}: {body}"));
    rest.split_once(&format!("</{name}>")).unwrap().0
}

/// A call with a signature of version 3, as it goes over the wire.
fn signed(action: &str, query: &str, nonce: &str) -> String {
    let mut params = Params::new();
    params.read_encoded(query);
    let unsigned = Unsigned {
        method: "GET",
        host: "h",
        action,
        version: "2016-04-28",
        params: &params,
        now: time::OffsetDateTime::now_utc(),
        nonce,
        body: b"",
    };
    let key = AccessKey { id: "testid".into(), secret: "testsecret".into(), token: None };
    let signed = sign::v3(&unsigned, &key);
    let headers: String = signed.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /?{} HTTP/1.1\r\n{headers}\r\n", signed.query)
}

#[tokio::test]
async fn raw_nonsense_gets_a_whole_error() {
    let running = start(quick()).await;
    for (request, status, code) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "400", "MissingAction"),
        ("GET /?Action=LaunchRocket HTTP/1.1\r\nHost: h\r\n\r\n", "404", "InvalidAction.NotFound"),
        (
            "POST /somewhere?Action=DescribeVpcs HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
            "404",
            "InvalidAction.NotFound",
        ),
        ("GET /?Action=DescribeVpcs HTTP/1.1\r\nHost: h\r\n\r\n", "400", "MissingVersion"),
        (
            "GET /?Action=DescribeVpcs&Version=2016-04-28 HTTP/1.1\r\nHost: h\r\n\r\n",
            "400",
            "MissingAccessKeyId",
        ),
        ("DELETE /?Action=%ff%00&&&=&= HTTP/1.1\r\nHost: h\r\n\r\n", "400", "UnsupportedHTTPMethod"),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 32\r\n\r\nAction=DescribeVpcs&Version=2000",
            "400",
            "InvalidVersion",
        ),
        (
            "GET /?Action=DescribeVpcs&Version=2016-04-28 HTTP/1.1\r\nHost: h\r\nAuthorization: \u{fffd}\u{1f980}\r\n\r\n",
            "400",
            "IncompleteSignature",
        ),
    ] {
        let answer = raw(running.api, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        // Whoever names the action as a parameter, and no format, is answered in XML.
        let (_, body) = halves(&answer);
        assert_eq!(tag(body, "Code"), code, "{request:?}");
        assert_eq!((tag(body, "HostId"), tag(body, "RequestId").len()), ("h", 36));
        assert!(!tag(body, "Message").is_empty());
    }
    for noise in [&b"\x16\x03\x01\x02\x00\x01"[..], b"\0\0\0\0", b"GET", b"\r\n\r\n\r\n"] {
        for address in [running.api, running.metadata, running.control] {
            let answer = raw(address, noise).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
    }
    running.client().list_entries(&table()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_http_gets_a_whole_error() {
    let running = start(quick()).await;
    let header = |count: usize| (0..count).map(|n| format!("a{n}: b\r\n")).collect::<String>();
    for (request, status, code) in [
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400, "MalformedRequest"),
        ("GET / HTTP/1.1\r\nno header\r\n\r\n".to_owned(), 400, "MalformedRequest"),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}".to_owned(), 400, "MalformedRequest"),
        (
            "GET / HTTP/1.1\r\nContent-Length: 9999999999999999999999\r\n\r\n".to_owned(),
            400,
            "MalformedRequest",
        ),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(66_000)), 414, "RequestURITooLong"),
        (format!("GET / HTTP/1.1\r\n{}\r\n", header(200)), 431, "RequestHeaderTooLarge"),
        ("POST /?Format=JSON HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc".to_owned(), 400, "IncompleteBody"),
        (
            "POST /?Format=JSON HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
            400,
            "IncompleteBody",
        ),
        (
            format!(
                "POST /?Format=JSON HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n{}",
                "a".repeat(1_048_577)
            ),
            413,
            "RequestEntityTooLarge",
        ),
    ] {
        let about = request.chars().take(60).collect::<String>();
        let answer = raw(running.api, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{about:?}: {answer}");
        let (head, body) = halves(&answer);
        assert!(head.contains("application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["Code"], code, "{about:?}");
        assert_eq!(body["RequestId"].as_str().unwrap().len(), 36);
        for field in ["Message", "HostId", "Recommend"] {
            assert!(!body[field].as_str().unwrap().is_empty(), "{field}: {body}");
        }
    }
    // What was asked before the nonsense is answered before it.
    let answer = raw(running.api, b"GET /?Format=JSON HTTP/1.1\r\nHost: h\r\n\r\nnonsense\r\n\r\n").await;
    assert_eq!(answer.matches("HTTP/1.1 400").count(), 2, "{answer}");
    assert!(answer.contains("MissingAction") && answer.contains("MalformedRequest"), "{answer}");
    assert_eq!(raw(running.api, b"GET / HTTP/1.1\r\nHost").await, "", "it may still go on");
}

#[tokio::test]
async fn answers_are_json_or_xml_as_asked() {
    let running = start(quick()).await;
    let answer = raw(running.api, signed("DescribeRouteTableList", "VpcId=vpc-loden", "1").as_bytes()).await;
    let (head, body) = halves(&answer);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/json;charset=utf-8"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["RouterTableList"]["RouterTableListType"][0]["RouteTableId"], TABLE);

    let query = "VpcId=vpc-loden&Format=XML";
    let answer = raw(running.api, signed("DescribeRouteTableList", query, "2").as_bytes()).await;
    let (head, body) = halves(&answer);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/xml;charset=utf-8"), "{head}");
    let tables = tag(tag(body, "DescribeRouteTableListResponse"), "RouterTableList");
    assert_eq!(tag(tag(tables, "RouterTableListType"), "RouteTableId"), TABLE);
    assert_eq!(tables.matches("<RouterTableListType>").count(), 2);

    let answer =
        raw(running.api, signed("DescribeVpcAttribute", "VpcId=%3C&Format=xml", "3").as_bytes()).await;
    let (head, body) = halves(&answer);
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let error = tag(body, "Error");
    assert_eq!((tag(error, "Code"), tag(error, "HostId")), ("InvalidVpcId.NotFound", "h"));
    let recommend = format!(
        "https://api.aliyun.com/troubleshoot?product=Vpc&amp;q=InvalidVpcId.NotFound&amp;requestId={}",
        tag(error, "RequestId")
    );
    assert_eq!(tag(error, "Recommend"), recommend);
}

#[tokio::test]
async fn too_many_calls_are_told_when_to_come_back() {
    let limit = RateLimit {
        action: Some("DescribeRouteEntryList".into()),
        per: Per::User,
        burst: NonZeroU32::MIN,
        per_minute: NonZeroU32::MIN,
        status: 429,
        tell_retry_after: true,
    };
    let running = start(Settings { rate_limits: vec![limit], ..quick() }).await;
    let call = |nonce: &str| signed("DescribeRouteEntryList", &format!("RouteTableId={TABLE}"), nonce);
    assert!(raw(running.api, call("1").as_bytes()).await.starts_with("HTTP/1.1 200"));
    let answer = raw(running.api, call("2").as_bytes()).await;
    let (head, body) = halves(&answer);
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    let seconds = head.lines().find_map(|line| line.strip_prefix("x-acs-retry-after: ")).unwrap();
    assert!((50..=60).contains(&seconds.parse::<u64>().unwrap()), "{head}");
    assert!(body.contains("Throttling.User") && body.contains("user flow control"), "{body}");
    let failure = running.client().list_entries(&table()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Throttled);
    assert!(failure.retry_after > Some(Duration::from_secs(50)), "{failure:?}");
    assert_eq!(running.handle.throttled().get("DescribeRouteEntryList"), Some(&2));
}
