//! JSON patch, bounded: operations, copied bytes and depth.

use json_patch::PatchOperation;
use serde_json::Value;

use super::unprocessable;
use crate::{Error, error::Reason};

/// Operations in one patch, as upstream allows.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that all `copy` operations of one patch may add: without a bound, each could double the object.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// How deep the result may be; the JSON parser refuses deeper bodies too.
const MAX_DEPTH: usize = 128;

pub(super) fn apply(original: &Value, patch: &[u8]) -> Result<Value, Error> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|error| Error::bad_request(format!("error decoding patch: {error}")))?;
    let operations = &patch.0;
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        let message =
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}");
        return Err(Error::new(Reason::RequestEntityTooLarge, message));
    }
    let mut object = original.clone();
    let mut copied = 0;
    for operation in operations {
        if is_test_of_absence(&object, operation) {
            continue;
        }
        check_growth(&object, operation, &mut copied)?;
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(operation)).map_err(|error| {
            unprocessable(format!("the server rejected our request due to an error in our request: {error}"))
        })?;
    }
    Ok(object)
}

/// A test for null holds where there is nothing, as in upstream's library (`github.com/evanphx/json-patch`).
///
/// Clients add a first finalizer so: nobody may have added one since they looked.
fn is_test_of_absence(object: &Value, operation: &PatchOperation) -> bool {
    matches!(operation, PatchOperation::Test(test) if test.value.is_null() && object.pointer(test.path.as_str()).is_none())
}

fn check_growth(object: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), Error> {
    let (path, value) = match operation {
        PatchOperation::Add(add) => (&add.path, Some(&add.value)),
        PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
        PatchOperation::Copy(copy) => {
            let value = object.pointer(copy.from.as_str());
            *copied += value.map_or(0, size);
            if *copied > MAX_COPIED_BYTES {
                return Err(unprocessable(format!("the patch copies more than {MAX_COPIED_BYTES} bytes")));
            }
            (&copy.path, value)
        }
        PatchOperation::Move(from) => (&from.path, object.pointer(from.from.as_str())),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    let depth = path.as_str().matches('/').count() + value.map_or(0, depth);
    if depth > MAX_DEPTH {
        return Err(unprocessable(format!("the patch makes the object deeper than {MAX_DEPTH}")));
    }
    Ok(())
}

/// About as many bytes as the value takes when printed.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(members) => {
            2 + members.iter().map(|(name, value)| name.len() + 4 + size(value)).sum::<usize>()
        }
    }
}

/// Recursion is safe: no value here is deeper than twice [`MAX_DEPTH`].
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
