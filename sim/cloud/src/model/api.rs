//! From a call as it arrived to its answer: which action, who calls, and the order of the checks.

use loden_aliyun::{ApiError, Params, Request, ecs, vpc};
use serde_json::Value;
use time::OffsetDateTime;

use super::{Cloud, SignedCall};

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
    let answer = R::from_params(params)?.answer(cloud, request_id, now)?;
    serde_json::to_value(answer).map_err(|error| {
        ApiError::new(500, "InternalError", format!("The answer cannot be written: {error}."))
    })
}

type CarryOut = fn(&mut Cloud, &Params, &str, OffsetDateTime) -> Result<Value, ApiError>;

macro_rules! actions {
    ($($request:ty),* $(,)?) => {
        /// The action of that name: its version, and how it is carried out.
        fn find(action: &str) -> Option<(&'static str, CarryOut)> {
            $(if action == <$request>::ACTION {
                return Some((<$request>::PRODUCT.version(), carry_out::<$request>));
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
    vpc::CreateRouteEntries,
    vpc::DeleteRouteEntries,
    ecs::DescribeInstances,
    ecs::DescribeNetworkInterfaces,
    ecs::ModifyNetworkInterfaceAttribute,
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
        let (version, carry_out) = find(action).ok_or_else(unknown)?;
        *self.calls.entry(action.to_owned()).or_default() += 1;
        match call.name("x-acs-version", "Version") {
            None => {
                return Err(ApiError::new(400, "MissingVersion", "Version is mandatory for this action."));
            }
            Some(given) if given != version => {
                return Err(ApiError::new(
                    400,
                    "InvalidVersion",
                    "Specified parameter Version is not valid.",
                ));
            }
            Some(_) => {}
        }
        self.authenticate(&call.signed, now)?;
        if let Some(error) = self.take_error(action) {
            return Err(error);
        }
        carry_out(self, call.signed.params, call.request_id, now)
    }
}
