//! The token file of a managed cluster, which its control plane puts at [`PATH`]: temporary credentials, each value encrypted.
//!
//! The key lies beside the values, so the encryption keeps nothing from whoever can read the file; it has to be undone all the same. JSON with
//! `access.key.id`, `access.key.secret`, `security.token`, `expiration` and `keyring`. A value is base64 of an AES-CBC text whose first block is the
//! initialisation vector, padded as PKCS #7 says, under the bytes of `keyring`. `expiration` is taken plain or encrypted.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::sign::{self, AccessKey};

/// Where the file is.
pub const PATH: &str = "/var/addon/token-config";

/// Bytes of a block.
const BLOCK: usize = 16;

/// What the file holds.
#[derive(Clone, PartialEq, Eq)]
pub struct AddonToken {
    /// The key to sign with.
    pub key: AccessKey,
    /// End of validity.
    pub expires_at: OffsetDateTime,
}

impl fmt::Debug for AddonToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddonToken").field("key", &self.key).field("expires_at", &self.expires_at).finish()
    }
}

/// Why the file cannot be used. No value is shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddonTokenError {
    /// Not the JSON it should be.
    #[error("it is not JSON with the keys it should have (line {line})")]
    Json {
        /// Where.
        line: usize,
    },
    /// The keyring is no AES key.
    #[error("its keyring has {0} bytes; an AES key has 16, 24 or 32")]
    Keyring(usize),
    /// A value cannot be decrypted.
    #[error("{0} cannot be decrypted with its keyring")]
    Value(&'static str),
    /// The expiration is no date.
    #[error("its expiration is no date")]
    Expiration,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "access.key.id")]
    id: String,
    #[serde(rename = "access.key.secret")]
    secret: String,
    #[serde(rename = "security.token")]
    token: String,
    expiration: String,
    keyring: String,
}

/// Reads the file's text.
///
/// # Errors
/// See [`AddonTokenError`].
pub fn read(text: &str) -> Result<AddonToken, AddonTokenError> {
    let file: File =
        serde_json::from_str(text).map_err(|error| AddonTokenError::Json { line: error.line() })?;
    let keyring = file.keyring.as_bytes();
    if !matches!(keyring.len(), 16 | 24 | 32) {
        return Err(AddonTokenError::Keyring(keyring.len()));
    }
    let value = |name, text: &str| decrypt(text, keyring).ok_or(AddonTokenError::Value(name));
    let expires_at = match sign::parse_date(&file.expiration) {
        Some(at) => at,
        None => {
            let text = value("expiration", &file.expiration)?;
            sign::parse_date(&text).ok_or(AddonTokenError::Expiration)?
        }
    };
    let key = AccessKey {
        id: value("access.key.id", &file.id)?,
        secret: value("access.key.secret", &file.secret)?,
        token: Some(value("security.token", &file.token)?),
    };
    Ok(AddonToken { key, expires_at })
}

fn decrypt(text: &str, key: &[u8]) -> Option<String> {
    let bytes = STANDARD.decode(text.trim()).ok()?;
    let (iv, body) = bytes.split_at_checked(BLOCK)?;
    let plain = match key.len() {
        16 => Decryptor::<Aes128>::new_from_slices(key, iv).ok()?.decrypt_padded_vec::<Pkcs7>(body),
        24 => Decryptor::<Aes192>::new_from_slices(key, iv).ok()?.decrypt_padded_vec::<Pkcs7>(body),
        _ => Decryptor::<Aes256>::new_from_slices(key, iv).ok()?.decrypt_padded_vec::<Pkcs7>(body),
    };
    String::from_utf8(plain.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // printf %s TEXT | openssl enc -aes-256-cbc -K $(printf %s KEYRING | xxd -p -c64) -iv 000102..0f, the vector put before it, in base64.
    const KEYRING: &str = "0123456789abcdef0123456789abcdef";
    const ID: &str = "AAECAwQFBgcICQoLDA0OD16DlGhyya87MF0RXmiRbeg=";
    const SECRET: &str = "AAECAwQFBgcICQoLDA0OD6B58KpDb0n3ANzr7p25CYY=";
    const TOKEN: &str = "AAECAwQFBgcICQoLDA0OD6CUGCdExFf2WDG03vhHGRLpr2cdsAI0a6RKtY+nZwzT";
    const DATE: &str = "AAECAwQFBgcICQoLDA0OD4LXUi8paHK7euL0bc+HF6wPsqUp66tTmi+mw8qi6oiE";

    fn file(id: &str, expiration: &str, keyring: &str) -> String {
        format!(
            r#"{{"access.key.id":"{id}","access.key.secret":"{SECRET}","security.token":"{TOKEN}","expiration":"{expiration}","keyring":"{keyring}"}}"#
        )
    }

    #[test]
    fn what_openssl_encrypted_is_read() {
        for expiration in ["2030-01-02T03:04:05Z", DATE] {
            let token = read(&file(ID, expiration, KEYRING)).unwrap();
            assert_eq!((token.key.id.as_str(), token.key.secret.as_str()), ("STS.testid", "testsecret"));
            assert_eq!(token.key.token.as_deref(), Some("a longer token than one block"));
            assert_eq!(sign::format_date(token.expires_at), "2030-01-02T03:04:05Z");
            assert!(!format!("{token:?}").contains("testsecret"));
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_a_value() {
        let date = "2030-01-02T03:04:05Z";
        let other = "ffffffffffffffffffffffffffffffff";
        for (text, error) in [
            ("{}".to_owned(), AddonTokenError::Json { line: 1 }),
            (file(ID, date, "short"), AddonTokenError::Keyring(5)),
            (file("AAAA", date, KEYRING), AddonTokenError::Value("access.key.id")),
            (file("not base64!", date, KEYRING), AddonTokenError::Value("access.key.id")),
            (file(ID, date, other), AddonTokenError::Value("access.key.id")),
            (file(ID, "soon", KEYRING), AddonTokenError::Value("expiration")),
            (file(ID, ID, KEYRING), AddonTokenError::Expiration),
        ] {
            assert_eq!(read(&text), Err(error));
        }
    }
}
