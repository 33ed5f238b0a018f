//! Compiles the JSON codecs of large kinds once, in this crate.
//!
//! They are generic, and each crate that reads a Pod would otherwise compile some hundred functions of its own: they were
//! half of what the crates of components took to build. At the optimisation of development builds, the compiler lets
//! crates use the generic code that a crate below them has already.

use bytes::Bytes;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Node, Pod, Service},
};

use crate::{
    Error,
    typed::{decode, encode},
};

macro_rules! compile {
    ($($kind:ident),*) => {
        $(
            const _: () = {
                #[used]
                static CODEC: (fn(&Bytes) -> Result<$kind, Error>, fn(&$kind) -> Result<Bytes, Error>) =
                    (decode::<$kind>, encode::<$kind>);
            };
        )*
    };
}

compile!(Deployment, Node, Pod, ReplicaSet, Service);
