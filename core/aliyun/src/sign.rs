//! Request signatures, both versions, for the one who signs and the one who verifies.
//!
//! Version 3 (`ACS3-HMAC-SHA256`) signs the query, a list of headers that the client chooses, and the hash of the body. Version 1
//! (`HMAC-SHA1`) signs the parameters, wherever they travel. A verifier must honour the client's own `SignedHeaders`: some SDKs also
//! sign `accept` and `user-agent`. Secrets pass through here and are never part of an error or a debug text.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::Params;
use crate::params::escape;

/// Name of signature version 3, the first word of its `Authorization`.
pub const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// How dates are written: UTC, whole seconds.
const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// An access key, with the token that belongs to it when it is temporary.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// `AccessKeyId`, not a secret.
    pub id: String,
    /// `AccessKeySecret`.
    pub secret: String,
    /// `SecurityToken` of temporary credentials.
    pub token: Option<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .field("temporary", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

/// What a version 3 request consists of before it is signed. Everything that changes from call to call is an argument.
#[derive(Debug, Clone)]
pub struct Unsigned<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// Host with port, as it goes into the `host` header.
    pub host: &'a str,
    /// Action.
    pub action: &'a str,
    /// Version of the API, a date.
    pub version: &'a str,
    /// Business parameters; they travel in the query.
    pub params: &'a Params,
    /// Time of the call.
    pub now: OffsetDateTime,
    /// Unique per call.
    pub nonce: &'a str,
    /// Body, usually empty.
    pub body: &'a [u8],
}

/// A version 3 request ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The query string, without `?`.
    pub query: String,
    /// All headers to send, lower-case names, `host` and `authorization` included.
    pub headers: Vec<(String, String)>,
    /// The signature alone, in hexadecimal.
    pub signature: String,
}

/// Signs `request` with `key`, version 3.
#[must_use]
pub fn v3(request: &Unsigned<'_>, key: &AccessKey) -> Signed {
    let mut headers = vec![
        ("host".to_owned(), request.host.to_owned()),
        ("x-acs-action".to_owned(), request.action.to_owned()),
        ("x-acs-content-sha256".to_owned(), hex(&Sha256::digest(request.body))),
        ("x-acs-date".to_owned(), format_date(request.now)),
        ("x-acs-signature-nonce".to_owned(), request.nonce.to_owned()),
        ("x-acs-version".to_owned(), request.version.to_owned()),
    ];
    if let Some(token) = &key.token {
        headers.push(("x-acs-accesskey-id".to_owned(), key.id.clone()));
        headers.push(("x-acs-security-token".to_owned(), token.clone()));
    }
    headers.sort();
    let canonical = Canonical {
        method: request.method,
        path: "/",
        params: request.params,
        headers: &headers,
        body_sha256: &hex(&Sha256::digest(request.body)),
    };
    let signature = hex(&hmac_sha256(&key.secret, &canonical.string_to_sign()));
    let authorization = Authorization {
        access_key_id: key.id.clone(),
        signed_headers: headers.iter().map(|(name, _)| name.clone()).collect(),
        signature: signature.clone(),
    };
    headers.push(("authorization".to_owned(), authorization.to_string()));
    Signed { query: request.params.encoded(), headers, signature }
}

/// The parts of a request that version 3 signs.
#[derive(Debug, Clone, Copy)]
pub struct Canonical<'a> {
    /// HTTP method in capitals.
    pub method: &'a str,
    /// Path, `/` for RPC calls.
    pub path: &'a str,
    /// Parameters of the query (not of the body).
    pub params: &'a Params,
    /// Signed headers with their values, lower-case names, sorted.
    pub headers: &'a [(String, String)],
    /// Hexadecimal SHA-256 of the body.
    pub body_sha256: &'a str,
}

impl Canonical<'_> {
    /// The canonical request, whose hash is signed.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.method, self.path, self.params.encoded());
        for (name, value) in self.headers {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}:{}", value.trim());
        }
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        let _ = write!(text, "\n{}\n{}", names.join(";"), self.body_sha256);
        text
    }

    /// What is signed: the algorithm and the hash of the canonical request.
    #[must_use]
    pub fn string_to_sign(&self) -> String {
        format!("{ALGORITHM}\n{}", hex(&Sha256::digest(self.text())))
    }

    /// Whether `signature` (hexadecimal) is this request's under `secret`. Takes the same time wherever they differ.
    #[must_use]
    pub fn verifies(&self, secret: &str, signature: &str) -> bool {
        let expected = hex(&hmac_sha256(secret, &self.string_to_sign()));
        same(expected.as_bytes(), signature.to_ascii_lowercase().as_bytes())
    }
}

/// The `Authorization` header of version 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Who signed.
    pub access_key_id: String,
    /// Lower-case header names in the order the client listed them.
    pub signed_headers: Vec<String>,
    /// Hexadecimal signature.
    pub signature: String,
}

impl Authorization {
    /// Reads the header's value; `None` when it is not of version 3 or lacks a part.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields = text.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let (mut id, mut names, mut signature) = (None, None, None);
        for field in fields.split(',') {
            match field.trim().split_once('=')? {
                ("Credential", value) => id = Some(value),
                ("SignedHeaders", value) => names = Some(value),
                ("Signature", value) => signature = Some(value),
                _ => {}
            }
        }
        Some(Self {
            access_key_id: id.filter(|id| !id.is_empty())?.to_owned(),
            signed_headers: names?.split(';').map(str::to_ascii_lowercase).collect(),
            signature: signature?.to_owned(),
        })
    }
}

impl fmt::Display for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{ALGORITHM} Credential={},SignedHeaders={},Signature={}",
            self.access_key_id,
            self.signed_headers.join(";"),
            self.signature
        )
    }
}

/// What version 1 signs: `METHOD&%2F&` and the escaped canonical query of all parameters but `Signature`.
#[must_use]
pub fn v1_string_to_sign(method: &str, params: &Params) -> String {
    let signed: Params = params.iter().filter(|(name, _)| *name != "Signature").collect();
    format!("{method}&%2F&{}", escape(&signed.encoded()))
}

/// The version 1 signature of `params` (with or without `Signature` among them), in base64.
#[must_use]
pub fn v1(method: &str, params: &Params, secret: &str) -> String {
    let key = format!("{secret}&");
    // A key longer than a block is hashed first; shorter ones are padded with zeros, which changes nothing.
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        fill(&mut block, &Sha1::digest(&key));
    } else {
        fill(&mut block, key.as_bytes());
    }
    let mut mac = Hmac::<Sha1>::new(&block.into());
    mac.update(v1_string_to_sign(method, params).as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// Whether `signature` is the version 1 signature of `params` under `secret`. Takes the same time wherever they differ.
#[must_use]
pub fn v1_verifies(method: &str, params: &Params, secret: &str, signature: &str) -> bool {
    same(v1(method, params, secret).as_bytes(), signature.as_bytes())
}

/// A date as requests and answers carry it, e.g. `2026-01-02T03:04:05Z`.
#[must_use]
pub fn format_date(at: OffsetDateTime) -> String {
    // Formatting fails only for components that the type lacks; an OffsetDateTime has them all.
    at.to_offset(time::UtcOffset::UTC).format(DATE).unwrap_or_default()
}

/// Reads a date of that form.
#[must_use]
pub fn parse_date(text: &str) -> Option<OffsetDateTime> {
    time::PrimitiveDateTime::parse(text, DATE).ok().map(time::PrimitiveDateTime::assume_utc)
}

/// Lower-case hexadecimal of the SHA-256 of `body`, as `x-acs-content-sha256` carries it.
#[must_use]
pub fn body_sha256(body: &[u8]) -> String {
    hex(&Sha256::digest(body))
}

fn hmac_sha256(secret: &str, text: &str) -> [u8; 32] {
    let mut block = [0_u8; 64];
    if secret.len() > block.len() {
        fill(&mut block, &Sha256::digest(secret));
    } else {
        fill(&mut block, secret.as_bytes());
    }
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

fn fill(block: &mut [u8; 64], bytes: &[u8]) {
    for (to, from) in block.iter_mut().zip(bytes) {
        *to = *from;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn key(secret: &str) -> AccessKey {
        AccessKey { id: "testid".to_owned(), secret: secret.to_owned(), token: None }
    }

    fn create_route_entry() -> Params {
        [
            ("DestinationCidrBlock", "172.20.1.0/24"),
            ("NextHopId", "i-1"),
            ("NextHopType", "Instance"),
            ("RegionId", "cn-hangzhou"),
            ("RouteTableId", "vtb-1"),
        ]
        .into_iter()
        .collect()
    }

    /// The vendor publishes this signature; its date and nonce come from the English page on signature version 3, where the canonical
    /// request has the hash checked here.
    #[test]
    fn v3_vendor_vector() {
        let params: Params =
            [("ImageId", "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd"), ("RegionId", "cn-shanghai")]
                .into_iter()
                .collect();
        let request = Unsigned {
            method: "POST",
            host: "ecs.cn-shanghai.aliyuncs.com",
            action: "RunInstances",
            version: "2014-05-26",
            params: &params,
            now: datetime!(2023-10-26 10:22:32 UTC),
            nonce: "3156853299f313e23d1673dc12e1703d",
            body: b"",
        };
        let signed = v3(&request, &key("YourAccessKeySecret"));
        assert_eq!(signed.signature, "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0");
        let headers: Vec<_> =
            signed.headers.iter().filter(|(name, _)| name != "authorization").cloned().collect();
        let canonical = Canonical {
            method: "POST",
            path: "/",
            params: &params,
            headers: &headers,
            body_sha256: &body_sha256(b""),
        };
        assert_eq!(
            canonical.string_to_sign(),
            "ACS3-HMAC-SHA256\n7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259"
        );
    }

    #[test]
    fn v3_route_entry_vector() {
        let params = create_route_entry();
        let request = Unsigned {
            method: "POST",
            host: "127.0.0.1:8080",
            action: "CreateRouteEntry",
            version: "2016-04-28",
            params: &params,
            now: datetime!(2026-01-02 03:04:05 UTC),
            nonce: "nonce-1",
            body: b"",
        };
        let signed = v3(&request, &key("testsecret"));
        assert_eq!(signed.signature, "1098a0a84e5f7dc4de611d21d5b6f36f02e307c6eb8fba71cdbae20585d41123");
        let (_, authorization) = signed.headers.iter().find(|(name, _)| name == "authorization").unwrap();
        let read = Authorization::parse(authorization).unwrap();
        assert_eq!(read.to_string(), *authorization);
        assert_eq!(read.signature, signed.signature);
    }

    #[test]
    fn v1_route_entry_vector() {
        let mut params = create_route_entry();
        for (name, value) in [
            ("AccessKeyId", "testid"),
            ("Action", "CreateRouteEntry"),
            ("Format", "JSON"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureNonce", "nonce-1"),
            ("SignatureType", ""),
            ("SignatureVersion", "1.0"),
            ("Timestamp", "2026-01-02T03:04:05Z"),
            ("Version", "2016-04-28"),
            ("Signature", "is not signed"),
        ] {
            params.set(name, value);
        }
        assert_eq!(v1("POST", &params, "testsecret"), "WMlPqECP8hVbH0nF6i4S25ki/n8=");
        assert!(v1_verifies("POST", &params, "testsecret", "WMlPqECP8hVbH0nF6i4S25ki/n8="));
        assert!(!v1_verifies("GET", &params, "testsecret", "WMlPqECP8hVbH0nF6i4S25ki/n8="));
    }

    #[test]
    fn a_token_is_sent_and_signed() {
        let params = Params::new();
        let request = Unsigned {
            method: "POST",
            host: "h",
            action: "A",
            version: "V",
            params: &params,
            now: datetime!(2026-01-02 03:04:05 UTC),
            nonce: "n",
            body: b"",
        };
        let temporary = AccessKey { token: Some("token".to_owned()), ..key("s") };
        let signed = v3(&request, &temporary);
        let (_, authorization) = signed.headers.last().unwrap();
        let read = Authorization::parse(authorization).unwrap();
        assert!(read.signed_headers.contains(&"x-acs-security-token".to_owned()));
        assert!(read.signed_headers.is_sorted());
        assert!(!format!("{temporary:?}").contains("token\""));
    }

    #[test]
    fn authorization_of_another_kind_is_refused() {
        for text in [
            "",
            "Bearer x",
            "ACS3-HMAC-SHA256",
            "ACS3-HMAC-SHA256 Credential=,SignedHeaders=a,Signature=b",
            "ACS3-HMAC-SHA256 x",
        ] {
            assert_eq!(Authorization::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn dates_are_utc_seconds() {
        assert_eq!(format_date(datetime!(2026-01-02 11:04:05.9 +8)), "2026-01-02T03:04:05Z");
        assert_eq!(parse_date("2026-01-02T03:04:05Z"), Some(datetime!(2026-01-02 03:04:05 UTC)));
        assert_eq!(parse_date("2026-01-02 03:04:05"), None);
    }
}
