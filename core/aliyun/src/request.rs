//! How a typed request becomes parameters and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ApiError, Params};

/// The API that an action belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Product {
    /// Virtual Private Cloud: VPCs, vSwitches, route tables.
    Vpc,
    /// Elastic Compute Service: instances and their network interfaces.
    Ecs,
    /// Quota Center: how much of something an account may have.
    Quotas,
    /// Security Token Service: temporary credentials of a RAM role.
    Sts,
}

impl Product {
    /// The version parameter, a date.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::Vpc => "2016-04-28",
            Self::Ecs => "2014-05-26",
            Self::Quotas => "2020-05-10",
            Self::Sts => "2015-04-01",
        }
    }

    /// The first label of the product's endpoints, e.g. `vpc` in `vpc.cn-beijing.aliyuncs.com`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Vpc => "vpc",
            Self::Ecs => "ecs",
            Self::Quotas => "quotas",
            Self::Sts => "sts",
        }
    }
}

/// One action of the API: its name, its parameters, and the answer it gives.
pub trait Request: Sized {
    /// The action's name, e.g. `CreateRouteEntries`.
    const ACTION: &'static str;
    /// The API it belongs to.
    const PRODUCT: Product;
    /// What a successful call answers.
    type Answer: Serialize + DeserializeOwned;

    /// The business parameters (neither action nor signature).
    #[must_use]
    fn to_params(&self) -> Params;

    /// Reads the business parameters.
    ///
    /// # Errors
    /// `MissingParameter` or `InvalidParameter` as the server answers them.
    fn from_params(params: &Params) -> Result<Self, ApiError>;
}

/// A field of a request: how it is spelled in parameters.
pub trait Field: Sized {
    /// Writes the field under `name`; nothing when it is unset.
    fn write(&self, name: &str, params: &mut Params);

    /// Reads the field from `name`.
    ///
    /// # Errors
    /// `MissingParameter` when it is mandatory and absent, `InvalidParameter` when it cannot be read.
    fn read(name: &str, params: &Params) -> Result<Self, ApiError>;
}

impl Field for String {
    fn write(&self, name: &str, params: &mut Params) {
        params.set(name, self.as_str());
    }

    fn read(name: &str, params: &Params) -> Result<Self, ApiError> {
        params.get(name).map(str::to_owned).ok_or_else(ApiError::missing_parameter)
    }
}

impl Field for Option<String> {
    fn write(&self, name: &str, params: &mut Params) {
        if let Some(value) = self {
            params.set(name, value.as_str());
        }
    }

    fn read(name: &str, params: &Params) -> Result<Self, ApiError> {
        Ok(params.get(name).map(str::to_owned))
    }
}

impl Field for Option<u32> {
    fn write(&self, name: &str, params: &mut Params) {
        if let Some(value) = self {
            params.set(name, value.to_string());
        }
    }

    fn read(name: &str, params: &Params) -> Result<Self, ApiError> {
        params.get(name).map(|text| text.parse().map_err(|_| ApiError::invalid_parameter(name))).transpose()
    }
}

impl Field for Option<bool> {
    fn write(&self, name: &str, params: &mut Params) {
        if let Some(value) = self {
            params.set(name, if *value { "true" } else { "false" });
        }
    }

    /// Case does not matter: the Python SDKs send `True`.
    fn read(name: &str, params: &Params) -> Result<Self, ApiError> {
        match params.get(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => Err(ApiError::invalid_parameter(name)),
        }
    }
}

/// An element of a numbered list.
pub trait Item: Sized {
    /// Writes the element under `prefix`, which is `Name.N`.
    fn write_item(&self, prefix: &str, params: &mut Params);

    /// Reads the element back.
    ///
    /// # Errors
    /// As [`Field::read`].
    fn read_item(prefix: &str, params: &Params) -> Result<Self, ApiError>;
}

impl Item for String {
    fn write_item(&self, prefix: &str, params: &mut Params) {
        params.set(prefix, self.as_str());
    }

    fn read_item(prefix: &str, params: &Params) -> Result<Self, ApiError> {
        Ok(params.get(prefix).unwrap_or_default().to_owned())
    }
}

impl<T: Item> Field for Vec<T> {
    fn write(&self, name: &str, params: &mut Params) {
        for (index, item) in self.iter().enumerate() {
            item.write_item(&format!("{name}.{}", index + 1), params);
        }
    }

    fn read(name: &str, params: &Params) -> Result<Self, ApiError> {
        params
            .indices(name)
            .into_iter()
            .map(|index| T::read_item(&format!("{name}.{index}"), params))
            .collect()
    }
}

/// Defines a request: a structure, its parameter names, its action and its answer.
macro_rules! request {
    ($(#[$meta:meta])* $name:ident in $product:ident -> $answer:ty {
        $($(#[$field_meta:meta])* $field:ident: $ty:ty = $wire:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }

        impl $crate::Request for $name {
            const ACTION: &'static str = stringify!($name);
            const PRODUCT: $crate::Product = $crate::Product::$product;
            type Answer = $answer;

            fn to_params(&self) -> $crate::Params {
                let mut params = $crate::Params::new();
                $($crate::Field::write(&self.$field, $wire, &mut params);)*
                params
            }

            fn from_params(params: &$crate::Params) -> Result<Self, $crate::ApiError> {
                Ok(Self { $($field: $crate::Field::read($wire, params)?,)* })
            }
        }
    };
}

/// Defines an element of a numbered list of structures.
macro_rules! item {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $ty:ty = $wire:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }

        impl $crate::Item for $name {
            fn write_item(&self, prefix: &str, params: &mut $crate::Params) {
                $($crate::Field::write(&self.$field, &format!("{prefix}.{}", $wire), params);)*
            }

            fn read_item(prefix: &str, params: &$crate::Params) -> Result<Self, $crate::ApiError> {
                Ok(Self { $($field: $crate::Field::read(&format!("{prefix}.{}", $wire), params)?,)* })
            }
        }
    };
}

/// Defines a serde `with` module for a list that the API wraps in an object: `{"Key": [..]}`. The object and the list must be there:
/// an answer without them is malformed, never an empty list.
macro_rules! list_in {
    ($module:ident, $key:literal) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[derive(Serialize)]
            struct Out<'a, T> {
                #[serde(rename = $key)]
                items: &'a [T],
            }

            #[derive(Deserialize)]
            struct In<T> {
                #[serde(rename = $key)]
                items: Vec<T>,
            }

            pub(super) fn serialize<T: Serialize, S: Serializer>(
                items: &[T],
                to: S,
            ) -> Result<S::Ok, S::Error> {
                Out { items }.serialize(to)
            }

            pub(super) fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
            where
                T: Deserialize<'de>,
                D: Deserializer<'de>,
            {
                In::deserialize(from).map(|list: In<T>| list.items)
            }
        }
    };
}

pub(crate) use {item, list_in, request};
