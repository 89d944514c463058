//! Lists in pages, at one moment: all pages of a list show the objects as they were when the first was read.
//!
//! What must hold: a page of a moment that is no longer kept is refused. A list made of two moments would show an object
//! twice or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::failure::Failure;
use crate::resource::Resource;
use crate::store::{Key, Store};

/// Where a paged list goes on: after this key, at this revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Continue {
    pub(crate) revision: u64,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Continue {
    /// The token: opaque to clients, hexadecimal so that it passes through any URL.
    pub(crate) fn encode(&self) -> String {
        let text = format!("{}/{}/{}", self.revision, self.namespace, self.name);
        text.bytes().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn decode(token: &str) -> Result<Self, Failure> {
        let refuse = || Failure::bad_request("continue key is not valid: it was not issued by this server");
        if !token.len().is_multiple_of(2) || !token.is_ascii() {
            return Err(refuse());
        }
        let bytes = token
            .as_bytes()
            .chunks_exact(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(refuse)?;
        let text = String::from_utf8(bytes).map_err(|_| refuse())?;
        let mut parts = text.splitn(3, '/');
        let (Some(revision), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(refuse());
        };
        let revision = revision.parse().map_err(|_| refuse())?;
        Ok(Self { revision, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// What version of the data a list wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// The newest.
    Latest,
    /// Anything not older than this.
    NotOlder(u64),
    /// Exactly this.
    Exact(u64),
}

/// A list request apart from its selectors.
#[derive(Debug, Clone)]
pub(crate) struct ListOptions {
    pub(crate) at: At,
    pub(crate) limit: Option<usize>,
    pub(crate) from: Option<Continue>,
}

/// One page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) items: Vec<Arc<Value>>,
    pub(crate) revision: u64,
    pub(crate) next: Option<Continue>,
    pub(crate) remaining: usize,
}

pub(crate) fn list(
    store: &Store,
    resource: Resource,
    namespace: Option<&str>,
    selects: impl Fn(&Value) -> bool,
    options: &ListOptions,
) -> Result<Page, Failure> {
    let now = store.revision();
    let (revision, exact) = match (&options.from, options.at) {
        (Some(from), _) => (from.revision, true),
        (None, At::Latest) => (now, false),
        (None, At::NotOlder(wanted)) => {
            if wanted > now {
                return Err(Failure::version_too_large(wanted, now));
            }
            (now, false)
        }
        (None, At::Exact(wanted)) => (wanted, true),
    };
    if revision > now {
        return Err(Failure::version_too_large(revision, now));
    }
    let objects: BTreeMap<Key, Arc<Value>> = if exact && revision != now {
        store.list_at(resource, namespace, revision).map_err(|_compacted| {
            if options.from.is_some() {
                Failure::expired(
                    "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
                )
            } else {
                Failure::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
            }
        })?
    } else {
        store.list(resource, namespace).map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
    };
    let after = options.from.as_ref().map(|from| Key::new(resource, &from.namespace, &from.name));
    let mut rest = objects
        .into_iter()
        .filter(|(key, object)| after.as_ref().is_none_or(|after| key > after) && selects(object))
        .peekable();
    let limit = options.limit.unwrap_or(usize::MAX);
    let mut items = Vec::new();
    let mut last = None;
    while items.len() < limit
        && let Some((key, object)) = rest.next()
    {
        items.push(object);
        last = Some(key);
    }
    let next = match (rest.peek(), last) {
        (Some(_), Some(last)) => Some(Continue { revision, namespace: last.namespace, name: last.name }),
        _ => None,
    };
    let remaining = if next.is_some() { rest.count() } else { 0 };
    Ok(Page { items, revision, next, remaining })
}
