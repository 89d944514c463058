//! From a call as it arrived to its answer: which action, who calls, and the order of the checks.

use loden_aliyun::{ApiError, Params, Product, Request, codes, ecs, quotas, sts, vpc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{Duration, OffsetDateTime};

use super::{Cloud, SignedCall, state};

/// How long a client token stands for the call that brought it first.
const MEMORY_OF_TOKENS: Duration = Duration::hours(24);

/// Longest client token that the vendor takes, in characters of ASCII.
const LONGEST_TOKEN: usize = 64;

/// A call that a client token stands for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Remembered {
    #[serde(with = "state::moment")]
    at: OffsetDateTime,
    action: String,
    params: String,
    answer: Value,
}

/// A call of the API.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// What is signed.
    pub signed: SignedCall<'a>,
    /// The ID under which it is answered.
    pub request_id: &'a str,
}

impl Call<'_> {
    /// The action's name; the header wins over the parameter, as it does for the vendor.
    #[must_use]
    pub fn action(&self) -> &str {
        self.name("x-acs-action", "Action").unwrap_or_default()
    }

    /// The API that the action belongs to, if there is such an action.
    #[must_use]
    pub fn product(&self) -> Option<Product> {
        find(self.action()).map(|(product, _)| product)
    }

    fn name(&self, header: &str, parameter: &str) -> Option<&str> {
        let header = self.signed.headers.get(header).map(String::as_str).filter(|value| !value.is_empty());
        header.or_else(|| self.signed.params.get(parameter))
    }
}

/// An action that the emulator carries out.
pub(super) trait Answers: Request {
    /// Carries it out.
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError>;
}

fn carry_out<R: Answers>(
    cloud: &mut Cloud,
    params: &Params,
    request_id: &str,
    now: OffsetDateTime,
) -> Result<Value, ApiError> {
    super::check_region(cloud, params.get("RegionId"))?;
    let request = R::from_params(params)?;
    let asked = request.to_params();
    // Only requests that know client tokens keep them.
    let token = asked.get("ClientToken").map(str::to_owned);
    if token.as_ref().is_some_and(|token| token.len() > LONGEST_TOKEN || !token.is_ascii()) {
        return Err(ApiError::new(
            400,
            "IllegalParam.ClientToken",
            format!("ClientToken may have {LONGEST_TOKEN} ASCII characters at most."),
        ));
    }
    if let Some(known) = token.as_ref().and_then(|token| cloud.client_tokens.get(token)) {
        return known.answer_again(R::ACTION, &asked, request_id);
    }
    let answer = cloud.perhaps_stale(R::ACTION, |cloud| request.answer(cloud, request_id, now))?;
    let answer = serde_json::to_value(answer).map_err(|error| {
        ApiError::new(500, "InternalError", format!("The answer cannot be written: {error}."))
    })?;
    if let Some(token) = token {
        cloud.client_tokens.retain(|_, known| now - known.at < MEMORY_OF_TOKENS);
        let remembered = Remembered {
            at: now,
            action: R::ACTION.to_owned(),
            params: asked.encoded(),
            answer: answer.clone(),
        };
        cloud.client_tokens.insert(token, remembered);
    }
    Ok(answer)
}

impl Remembered {
    /// The first call's answer under another request ID, if the call is the same.
    fn answer_again(&self, action: &str, asked: &Params, request_id: &str) -> Result<Value, ApiError> {
        if self.action != action || self.params != asked.encoded() {
            return Err(ApiError::new(
                400,
                codes::TOKEN_MISUSED,
                "The specified ClientToken was used with other parameters.",
            ));
        }
        let mut answer = self.answer.clone();
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("RequestId".to_owned(), Value::from(request_id));
        }
        Ok(answer)
    }
}

type CarryOut = fn(&mut Cloud, &Params, &str, OffsetDateTime) -> Result<Value, ApiError>;

macro_rules! actions {
    ($($request:ty),* $(,)?) => {
        /// Names of the actions that the emulator carries out.
        pub const ACTIONS: &[&str] = &[$(<$request>::ACTION),*];

        /// The action of that name: whose it is, and how it is carried out.
        fn find(action: &str) -> Option<(Product, CarryOut)> {
            $(if action == <$request>::ACTION {
                return Some((<$request>::PRODUCT, carry_out::<$request>));
            })*
            None
        }
    };
}

actions![
    vpc::DescribeVpcs,
    vpc::DescribeVpcAttribute,
    vpc::DescribeVSwitches,
    vpc::DescribeRouteTableList,
    vpc::DescribeRouteEntryList,
    vpc::CreateRouteEntry,
    vpc::DeleteRouteEntry,
    vpc::ModifyRouteEntry,
    vpc::CreateRouteEntries,
    vpc::DeleteRouteEntries,
    vpc::GetVpcRouteEntrySummary,
    vpc::CreateRouteTable,
    vpc::DeleteRouteTable,
    vpc::AssociateRouteTable,
    vpc::UnassociateRouteTable,
    quotas::GetProductQuota,
    ecs::DescribeInstances,
    ecs::DescribeNetworkInterfaces,
    ecs::ModifyNetworkInterfaceAttribute,
    sts::AssumeRoleWithOIDC,
];

impl Cloud {
    /// Answers a call.
    ///
    /// # Errors
    /// The error answer, without request ID and host.
    pub fn answer(&mut self, call: &Call<'_>, now: OffsetDateTime) -> Result<Value, ApiError> {
        self.advance(now);
        let action = call.action();
        let unknown = || {
            ApiError::new(
                404,
                "InvalidAction.NotFound",
                "Specified api is not found, please check your url and method.",
            )
        };
        if !matches!(call.signed.method, "GET" | "POST") {
            return Err(ApiError::new(400, "UnsupportedHTTPMethod", "This http method is not supported."));
        }
        if call.signed.path != "/" {
            return Err(unknown());
        }
        if action.is_empty() {
            return Err(ApiError::new(400, "MissingAction", "Action is mandatory for this action."));
        }
        let (product, carry_out) = find(action).ok_or_else(unknown)?;
        *self.calls.entry(action.to_owned()).or_default() += 1;
        match call.name("x-acs-version", "Version") {
            None => {
                return Err(ApiError::new(400, "MissingVersion", "Version is mandatory for this action."));
            }
            Some(given) if given != product.version() => {
                return Err(ApiError::new(
                    400,
                    "InvalidVersion",
                    "Specified parameter Version is not valid.",
                ));
            }
            Some(_) => {}
        }
        // There the token among the parameters proves who calls.
        let caller = if action == sts::AssumeRoleWithOIDC::ACTION {
            String::new()
        } else {
            self.authenticate(&call.signed, now)?
        };
        self.admit(action, &caller, now)?;
        if let Some(error) = self.take_error(action) {
            return Err(error);
        }
        carry_out(self, call.signed.params, call.request_id, now)
    }
}
