//! Quota Center actions, version 2020-05-10: how much of something an account may have.

use serde::{Deserialize, Serialize};

use crate::request::{item, request};

/// The product whose quota is meant, for route tables.
pub const VPC: &str = "vpc";
/// Custom entries in one route table.
pub const ROUTE_ENTRIES: &str = "vpc_quota_route_entrys_num";

item! {
    /// What a quota is narrowed to.
    Dimension {
        /// E.g. `regionId`.
        key: Option<String> = "Key",
        /// Value.
        value: Option<String> = "Value",
    }
}

request! {
    /// One quota of one product.
    GetProductQuota in Quotas -> GetProductQuotaAnswer {
        /// The product, e.g. [`VPC`].
        product_code: String = "ProductCode",
        /// The quota, e.g. [`ROUTE_ENTRIES`].
        quota_action_code: String = "QuotaActionCode",
        /// What it is narrowed to.
        dimensions: Vec<Dimension> = "Dimensions",
    }
}

/// Answer of [`GetProductQuota`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetProductQuotaAnswer {
    /// Request.
    pub request_id: String,
    /// The quota.
    pub quota: Quota,
}

/// How much of something there may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Quota {
    /// The product.
    #[serde(default)]
    pub product_code: String,
    /// The quota.
    pub quota_action_code: String,
    /// The limit, a float on the wire.
    pub total_quota: f64,
    /// What is used; tables have a quota each and no usage in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_usage: Option<f64>,
    /// Whether more can be asked for.
    #[serde(default)]
    pub adjustable: bool,
}
