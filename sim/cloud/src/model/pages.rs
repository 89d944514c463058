//! Pages of lists: by number, and by tokens that grow old.
//!
//! A token carries the position of its page's last item, not a count, so that items that come and go between two pages neither hide nor
//! repeat others. It also carries what selected the items, and its own age.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loden_aliyun::{ApiError, Request, sign};
use time::OffsetDateTime;

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadToken {
    /// None that this list gave out.
    Wrong,
    /// One that it gave out too long ago.
    Expired,
}

/// A digest of everything in a request that selects items: its parameters without those that say which page.
pub(super) fn digest(request: &impl Request) -> String {
    let mut params = request.to_params();
    for page in ["NextToken", "MaxResult", "MaxResults", "PageNumber", "PageSize"] {
        params.remove(page);
    }
    sign::body_sha256(params.encoded().as_bytes())
}

/// The token of the page that begins after `position`.
pub(super) fn write_token(position: &str, filters: &str, now: OffsetDateTime) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}/{filters}/{position}", now.unix_timestamp()))
}

/// The position that a token carries, if it is younger than `lifetime` seconds and of a list with the same filters.
pub(super) fn read_token(
    token: &str,
    filters: &str,
    lifetime: u64,
    now: OffsetDateTime,
) -> Result<String, BadToken> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken::Wrong)?;
    let text = String::from_utf8(bytes).map_err(|_| BadToken::Wrong)?;
    let mut parts = text.splitn(3, '/');
    let issued = parts.next().and_then(|part| part.parse::<i64>().ok()).ok_or(BadToken::Wrong)?;
    if parts.next() != Some(filters) {
        return Err(BadToken::Wrong);
    }
    let age = now.unix_timestamp().checked_sub(issued).ok_or(BadToken::Wrong)?;
    if age > i64::try_from(lifetime).unwrap_or(i64::MAX) {
        return Err(BadToken::Expired);
    }
    parts.next().map(str::to_owned).ok_or(BadToken::Wrong)
}

/// One page of `items` by number, with the page number and size as they were taken.
pub(super) fn page<T>(
    items: Vec<T>,
    number: Option<u32>,
    size: Option<u32>,
    largest: u32,
) -> Result<(Vec<T>, u32, u32), ApiError> {
    let number = number.unwrap_or(1);
    let size = size.unwrap_or(10);
    if number == 0 {
        return Err(ApiError::invalid_parameter("PageNumber"));
    }
    if size == 0 || size > largest {
        return Err(ApiError::invalid_parameter("PageSize"));
    }
    let skip = usize::try_from(number - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(usize::try_from(size).unwrap_or(usize::MAX));
    let take = usize::try_from(size).unwrap_or(usize::MAX);
    Ok((items.into_iter().skip(skip).take(take).collect(), number, size))
}
