//! `ObjectService`: reads and writes of objects of any kind.

use futures::stream::{self, BoxStream, StreamExt};
use hawser_api::{
    Error,
    grpc::target_of,
    patch::PatchType,
    resource::Target,
    v1::{self, object_service_server::ObjectService},
};
use tonic::{Request, Response, Status};

use super::{Front, decode, object_of, options_of, reply_of, status_of, user_agent_of, user_of};
use crate::{
    codec,
    ops::{Apply, Reply, options},
    registry::{DeleteRequest, ListRequest, VersionMatch},
};

/// Bytes of objects in one message of a list: far below the bound of clients' messages.
const PIECE: usize = 512 << 10;

type Answer<T> = Result<Response<T>, Status>;

impl Front {
    async fn get_object(
        &self,
        target: Target,
        request: Request<v1::GetRequest>,
    ) -> Result<v1::GetResponse, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let message = request.into_inner();
        let encoding = message.encoding();
        let call = self.server.enter(&user, "get", target, "")?;
        let reply = self.server.get(&call, &message.resource_version).await?;
        let object = Some(reply_of(&call.resource, &reply, encoding)?);
        Ok(v1::GetResponse { object, warnings: call.read_warnings() })
    }

    async fn list_objects(
        &self,
        target: Target,
        request: Request<v1::ListRequest>,
    ) -> Result<BoxStream<'static, Result<v1::ListResponse, Status>>, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let message = request.into_inner();
        let encoding = message.encoding();
        let call = self.server.enter(&user, "list", target, &message.field_selector)?;
        let list = ListRequest {
            label_selector: message.label_selector,
            resource_version: message.resource_version,
            version_match: VersionMatch::parse(&message.resource_version_match),
            limit: usize::try_from(message.limit).unwrap_or(0),
            continue_token: message.r#continue,
            ..ListRequest::default()
        };
        let listed = self.server.list(&call, &list).await?;
        let end = v1::ListResponse {
            items: Vec::new(),
            resource_version: listed.revision.to_string(),
            r#continue: listed.continue_token.clone(),
            remaining_item_count: listed.remaining.and_then(|remaining| i64::try_from(remaining).ok()),
            warnings: call.read_warnings(),
        };
        let mut objects = listed.objects();
        // Messages are made as the client takes them; the pass, and with it the place in flow control, lives as long.
        let pieces = std::iter::from_fn(move || {
            let (mut items, mut bytes) = (Vec::new(), 0);
            while bytes < PIECE {
                let Some(object) = objects.next() else { break };
                match object_of(&call.resource, &object, encoding) {
                    Ok(item) => {
                        bytes += item.body.len();
                        items.push(item);
                    }
                    Err(error) => return Some(Err(status_of(&error))),
                }
            }
            (!items.is_empty()).then(|| Ok(v1::ListResponse { items, ..v1::ListResponse::default() }))
        });
        Ok(stream::iter(pieces.chain([Ok(end)])).boxed())
    }

    async fn create_object(
        &self,
        target: Target,
        request: Request<v1::CreateRequest>,
    ) -> Result<v1::CreateResponse, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let agent = user_agent_of(&request);
        let message = request.into_inner();
        let call = self.server.enter(&user, "create", target, "")?;
        let (options, validation) = options_of("CreateOptions", &user, &agent, message.options)?;
        let (object, mut warnings, encoding) =
            decode(&call.resource, &call.target, message.object, validation)?;
        let written = self.server.create(&call, object, &options).await?;
        warnings.extend(written.warnings);
        let object = Some(reply_of(&call.resource, &written.reply, encoding)?);
        Ok(v1::CreateResponse { object, warnings })
    }

    async fn update_object(
        &self,
        target: Target,
        request: Request<v1::UpdateRequest>,
    ) -> Result<v1::UpdateResponse, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let agent = user_agent_of(&request);
        let message = request.into_inner();
        let call = self.server.enter(&user, "update", target, "")?;
        let (options, validation) = options_of("UpdateOptions", &user, &agent, message.options)?;
        let (object, mut warnings, encoding) =
            decode(&call.resource, &call.target, message.object, validation)?;
        let written = self.server.update(&call, object, &options).await?;
        warnings.extend(written.warnings);
        let object = Some(reply_of(&call.resource, &written.reply, encoding)?);
        Ok(v1::UpdateResponse { object, warnings })
    }

    async fn patch_object(
        &self,
        target: Target,
        request: Request<v1::PatchRequest>,
    ) -> Result<v1::PatchResponse, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let agent = user_agent_of(&request);
        let message = request.into_inner();
        let (kind, encoding) = (message.r#type(), message.encoding());
        let call = self.server.enter(&user, "patch", target, "")?;
        let (options, validation) = options_of("PatchOptions", &user, &agent, message.options)?;
        let kind = match kind {
            v1::PatchType::Json => PatchType::Json,
            v1::PatchType::Merge => PatchType::Merge,
            v1::PatchType::StrategicMerge => PatchType::StrategicMerge,
            v1::PatchType::Unspecified => return Err(Error::bad_request("type: required")),
        };
        let patch = codec::Patch { kind, body: message.patch, validation };
        let written = self.server.patch(&call, patch, &options).await?;
        let object = Some(reply_of(&call.resource, &written.reply, encoding)?);
        Ok(v1::PatchResponse { object, warnings: written.warnings })
    }

    async fn apply_object(
        &self,
        target: Target,
        request: Request<v1::ApplyRequest>,
    ) -> Result<v1::ApplyResponse, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let agent = user_agent_of(&request);
        let message = request.into_inner();
        let encoding = message.encoding();
        let call = self.server.enter(&user, "patch", target, "")?;
        let (options, validation) = options_of("PatchOptions", &user, &agent, message.options)?;
        let apply = Apply { body: message.configuration, force: message.force, validation };
        let written = self.server.apply(&call, apply, &options).await?;
        let object = Some(reply_of(&call.resource, &written.reply, encoding)?);
        Ok(v1::ApplyResponse { object, warnings: written.warnings })
    }

    async fn delete_object(
        &self,
        target: Target,
        request: Request<v1::DeleteRequest>,
    ) -> Result<v1::DeleteResponse, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let message = request.into_inner();
        let encoding = message.encoding();
        let some = |text: String| (!text.is_empty()).then_some(text);
        let policy = some(message.propagation_policy);
        let delete = DeleteRequest {
            grace_period_seconds: message.grace_period_seconds,
            propagation: options::propagation(policy.as_deref(), None)?,
            uid: some(message.uid),
            resource_version: some(message.resource_version),
            dry_run: message.dry_run,
        };
        if message.collection != target.name.is_none() {
            let why = "resource.name: required, but for a collection, which has none";
            return Err(Error::bad_request(why));
        }
        if message.collection {
            let call = self.server.enter(&user, "deletecollection", target, &message.field_selector)?;
            let list = ListRequest { label_selector: message.label_selector, ..ListRequest::default() };
            let (deleted, warnings) = self.server.delete_collection(&call, &list, &delete).await?;
            let status = Reply::Value(deleted.to_status(&call.resource));
            return Ok(v1::DeleteResponse {
                object: Some(reply_of(&call.resource, &status, encoding)?),
                warnings,
                deleted_count: i64::try_from(deleted.count).unwrap_or(i64::MAX),
            });
        }
        if !message.label_selector.is_empty() || !message.field_selector.is_empty() {
            return Err(Error::bad_request("label_selector, field_selector: only for a collection"));
        }
        let call = self.server.enter(&user, "delete", target, "")?;
        let deleted = self.server.delete(&call, &delete).await?;
        let object = Some(reply_of(&call.resource, &deleted.reply, encoding)?);
        Ok(v1::DeleteResponse { object, warnings: deleted.warnings, deleted_count: 0 })
    }
}

#[tonic::async_trait]
impl ObjectService for Front {
    type ListStream = BoxStream<'static, Result<v1::ListResponse, Status>>;

    async fn get(&self, mut request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("get", target, |target| self.get_object(target, request)).await
    }

    async fn list(&self, mut request: Request<v1::ListRequest>) -> Answer<Self::ListStream> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("list", target, |target| self.list_objects(target, request)).await
    }

    async fn create(&self, mut request: Request<v1::CreateRequest>) -> Answer<v1::CreateResponse> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("create", target, |target| self.create_object(target, request)).await
    }

    async fn update(&self, mut request: Request<v1::UpdateRequest>) -> Answer<v1::UpdateResponse> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("update", target, |target| self.update_object(target, request)).await
    }

    async fn patch(&self, mut request: Request<v1::PatchRequest>) -> Answer<v1::PatchResponse> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("patch", target, |target| self.patch_object(target, request)).await
    }

    async fn apply(&self, mut request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("patch", target, |target| self.apply_object(target, request)).await
    }

    async fn delete(&self, mut request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let target = target_of(request.get_mut().resource.take());
        let verb = if request.get_ref().collection { "deletecollection" } else { "delete" };
        self.counted(verb, target, |target| self.delete_object(target, request)).await
    }
}
