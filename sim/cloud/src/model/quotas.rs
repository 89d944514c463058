//! `GetProductQuota`: the limit that Quota Center knows for route entries.

use loden_aliyun::{ApiError, quotas};
use time::OffsetDateTime;

use super::Cloud;
use super::api::Answers;

impl Answers for quotas::GetProductQuota {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        _now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        if self.product_code != quotas::VPC {
            return Err(ApiError::new(404, "PRODUCT.NOT.FOUND", "The product does not exist."));
        }
        if self.quota_action_code != quotas::ROUTE_ENTRIES {
            return Err(ApiError::new(404, "QUOTA.NOT.FOUND", "The quota does not exist."));
        }
        // Of an account with several tables it is what every table has.
        let least = cloud.tables.values().map(|table| table.quota).min().unwrap_or_default();
        Ok(quotas::GetProductQuotaAnswer {
            request_id: request_id.to_owned(),
            quota: quotas::Quota {
                product_code: self.product_code,
                quota_action_code: self.quota_action_code,
                total_quota: f64::from(least),
                total_usage: None,
                adjustable: true,
            },
        })
    }
}
