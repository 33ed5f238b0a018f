//! What unallocated claims ask for, with the classes that they name: read once for all pods with the same.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use hawser_api::quantity::Quantity;
use hawser_cel::{PatternRoom, Program, Programs};
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceConstraint, DeviceSelector, DeviceToleration, ResourceClaim,
    ResourceClaimSpec,
};

use super::objects::quantity;

/// What several claims of one pod ask for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) claims: Vec<WantedClaim>,
}

#[derive(Debug)]
pub(super) struct WantedClaim {
    pub(super) requests: Vec<WantedRequest>,
    pub(super) constraints: Vec<DeviceConstraint>,
}

#[derive(Debug)]
pub(super) struct WantedRequest {
    pub(super) name: String,
    /// One, or those of `firstAvailable`, the best first.
    pub(super) alternatives: Vec<Alternative>,
    pub(super) is_list: bool,
}

/// A way to satisfy a request.
#[derive(Debug)]
pub(super) struct Alternative {
    /// `request`, or `request/alternative`.
    pub(super) full_name: String,
    pub(super) class: Arc<DeviceClass>,
    /// `None` is all that there are.
    pub(super) count: Option<usize>,
    pub(super) admin: bool,
    pub(super) selectors: Vec<Selector>,
    pub(super) tolerations: Vec<DeviceToleration>,
    pub(super) capacity: BTreeMap<String, Quantity>,
}

#[derive(Debug)]
pub(super) struct Selector {
    pub(super) program: Result<Arc<Program>, Arc<str>>,
    /// Whose it is, for messages: `class gpu: selector #0`.
    pub(super) whose: String,
}

/// What a request has in common with an alternative.
struct Fields<'a> {
    class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: Option<bool>,
    selectors: &'a Option<Vec<DeviceSelector>>,
    tolerations: &'a Option<Vec<DeviceToleration>>,
    capacity: &'a Option<CapacityRequirements>,
}

/// Has the class's selectors compiled while nobody waits for it.
pub(crate) fn compile_class(class: &DeviceClass, programs: &Programs) {
    compile(class.spec.selectors.iter().flatten(), programs);
}

/// The same of a claim. One that has its devices needs none.
pub(crate) fn compile_claim(claim: &ResourceClaim, programs: &Programs) {
    if claim.status.as_ref().is_some_and(|status| status.allocation.is_some()) {
        return;
    }
    let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
    let lists = requests.flat_map(|request| {
        let exactly = request.exactly.iter().map(|exactly| &exactly.selectors);
        exactly.chain(request.first_available.iter().flatten().map(|one| &one.selectors))
    });
    compile(lists.flat_map(|list| list.iter().flatten()), programs);
}

fn compile<'a>(selectors: impl Iterator<Item = &'a DeviceSelector>, programs: &Programs) {
    let mut room = PatternRoom::default();
    for cel in selectors.filter_map(|selector| selector.cel.as_ref()) {
        // What comes after a mistake is of no use to anybody.
        if !programs.get(&cel.expression).is_ok_and(|program| room.take(&program).is_ok()) {
            return;
        }
    }
}

impl WantedClaim {
    /// The error says what of the claim cannot be satisfied anywhere, in upstream's words.
    pub(super) fn of(
        claim: &str,
        spec: &ResourceClaimSpec,
        classes: &HashMap<String, Arc<DeviceClass>>,
        programs: &Programs,
    ) -> Result<Self, String> {
        let mut room = PatternRoom::default();
        let devices = spec.devices.as_ref();
        let mut requests = Vec::new();
        for request in devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
            let mut read = |fields: Fields<'_>, full_name: String| {
                Alternative::of(fields, full_name, classes, programs, &mut room)
            };
            let (alternatives, is_list) = match (&request.exactly, &request.first_available) {
                (Some(exactly), _) => {
                    let fields = Fields {
                        class: &exactly.device_class_name,
                        mode: exactly.allocation_mode.as_deref(),
                        count: exactly.count,
                        admin: exactly.admin_access,
                        selectors: &exactly.selectors,
                        tolerations: &exactly.tolerations,
                        capacity: &exactly.capacity,
                    };
                    (vec![read(fields, request.name.clone())?], false)
                }
                (None, Some(list)) if !list.is_empty() => {
                    let alternatives = list.iter().map(|one| {
                        let fields = Fields {
                            class: &one.device_class_name,
                            mode: one.allocation_mode.as_deref(),
                            count: one.count,
                            admin: None,
                            selectors: &one.selectors,
                            tolerations: &one.tolerations,
                            capacity: &one.capacity,
                        };
                        read(fields, format!("{}/{}", request.name, one.name))
                    });
                    (alternatives.collect::<Result<_, _>>()?, true)
                }
                _ => {
                    let name = &request.name;
                    return Err(format!("resource claim {claim}, request {name}: unknown request type"));
                }
            };
            requests.push(WantedRequest { name: request.name.clone(), alternatives, is_list });
        }
        let constraints = devices.and_then(|devices| devices.constraints.clone()).unwrap_or_default();
        Ok(Self { requests, constraints })
    }
}

impl Alternative {
    fn of(
        fields: Fields<'_>,
        full_name: String,
        classes: &HashMap<String, Arc<DeviceClass>>,
        programs: &Programs,
        room: &mut PatternRoom,
    ) -> Result<Self, String> {
        let class_name = fields.class;
        if class_name.is_empty() {
            return Err(format!("request {full_name}: unsupported request type"));
        }
        let class = classes.get(class_name).cloned();
        let class =
            class.ok_or_else(|| format!("request {full_name}: device class {class_name} does not exist"))?;
        let count = match fields.mode {
            Some("All") => None,
            // What cannot be given anyway needs no exact number.
            None | Some("ExactCount") => {
                Some(usize::try_from(fields.count.unwrap_or(1)).unwrap_or(usize::MAX))
            }
            Some(mode) => return Err(format!("request {full_name}: unsupported count mode {mode}")),
        };
        let mut selectors = Vec::new();
        let mut add = |whose: String, list: &Option<Vec<DeviceSelector>>, room: &mut PatternRoom| {
            for (index, selector) in list.iter().flatten().enumerate() {
                let whose = format!("{whose}: selector #{index}");
                let Some(cel) = &selector.cel else {
                    return Err(format!("{whose}: CEL expression empty (unsupported selector type?)"));
                };
                let program = programs.get(&cel.expression);
                if let Ok(program) = &program {
                    room.take(program).map_err(|error| format!("{whose}: CEL compile error: {error}"))?;
                }
                selectors.push(Selector { program, whose });
            }
            Ok(())
        };
        add(format!("class {class_name}"), &class.spec.selectors, &mut PatternRoom::default())?;
        add(format!("request {full_name}"), fields.selectors, room)?;
        let asked = fields.capacity.as_ref().and_then(|capacity| capacity.requests.as_ref());
        let capacity =
            asked.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), quantity(text)?)));
        Ok(Self {
            capacity: capacity.collect(),
            full_name,
            class,
            count,
            admin: fields.admin == Some(true),
            selectors,
            tolerations: fields.tolerations.clone().unwrap_or_default(),
        })
    }
}
