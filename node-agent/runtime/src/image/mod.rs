//! Images: pulled into containerd's content store, unpacked into snapshots, recorded under their names.
//!
//! An image is recorded last, when all of it is here, so that a record means a usable image. While a pull
//! runs, a lease keeps containerd's garbage collection away from what it has made so far.

mod accounts;
pub(crate) mod config;
mod content;
mod reference;
mod registry;
mod unpack;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use containerd_client::services::v1::Image as Record;
use containerd_client::services::v1::snapshots::{RemoveSnapshotRequest, ViewSnapshotRequest};
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteImageRequest, DeleteRequest, GetImageRequest, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::types;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::containerd::rpc::{self, Rpc};
use crate::ids::digest_of;
use crate::keyed_lock::KeyedLock;
use crate::spec::user::Accounts;
use crate::{
    Error, Image, ProgressSender, PullErrorKind, PullProgress, Pulled, Registries, RegistryAuth, Result,
};
use config::{Descriptor, Document, ImageConfig, Manifest, ProcessConfig};
use reference::Reference;
use registry::{Failure, Found, Source};

/// Layers of one image that are fetched at a time: upstream's and Docker's number.
const PARALLEL_LAYERS: usize = 3;

/// How long what an unfinished pull has fetched is kept for the next try.
const LEASE_LIFETIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Marks the records of this runtime.
pub(crate) const MANAGED_LABEL: &str = "hawser.dev/managed";

/// The images of one node.
pub(crate) struct Images {
    rpc: Rpc,
    snapshotter: String,
    registries: Registries,
    /// One pull an image, one unpacking a layer at a time.
    locks: KeyedLock,
    /// What was read of images, by the digest that a record points at. Content never changes under its
    /// digest; bounded by the records that there are: each list drops what none of them points at.
    cache: Mutex<HashMap<String, Arc<Resolved>>>,
}

/// An image's documents, put together.
pub(crate) struct Resolved {
    /// Digest of the configuration: the image id.
    pub(crate) id: String,
    pub(crate) process: ProcessConfig,
    /// Its uppermost snapshot; empty for an image without layers.
    pub(crate) chain_id: String,
    size_bytes: u64,
    accounts: tokio::sync::OnceCell<Accounts>,
}

/// An image as a container uses it.
pub(crate) struct UsableImage {
    pub(crate) resolved: Arc<Resolved>,
    /// `repository@digest`, else the image id.
    pub(crate) image_ref: String,
}

impl Images {
    pub(crate) fn new(rpc: Rpc, snapshotter: String, registries: Registries) -> Self {
        // reqwest looks for the process's provider; the first one installed stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { rpc, snapshotter, registries, locks: KeyedLock::default(), cache: Mutex::default() }
    }

    pub(crate) async fn pull(
        &self,
        image: &str,
        auth: &[RegistryAuth],
        progress: Option<ProgressSender>,
    ) -> Result<Pulled> {
        let reference = reference::parse(image)?;
        let name = reference::record_name(&reference);
        let _one_at_a_time = self.locks.lock(&name).await;
        let lease = format!("hawser-pull-{}", &digest_of(name.as_bytes())[7..39]);
        self.create_lease(&lease).await?;
        let pull = Pull { images: self, rpc: self.rpc.with_lease(&lease), reference: &reference, progress };
        let (target, credential) = pull.run(auth).await.map_err(|failure| Error::Pull {
            image: image.to_owned(),
            kind: failure.kind,
            message: failure.message,
        })?;
        crate::fault::point("image: fetched");
        self.record(&name, &target).await?;
        crate::fault::point("image: recorded");
        self.record(&reference::digest_name(&reference, &target.digest), &target).await?;
        // Only after the records hold on to the content. Failed pulls leave their lease to its end.
        let delete = DeleteRequest { id: lease, sync: false };
        rpc::remove("delete lease", self.rpc.leases().delete(delete)).await?;
        let pulled = self.status(image).await?;
        let image = pulled.ok_or_else(|| Error::NotFound { kind: "image", id: image.to_owned() })?;
        Ok(Pulled { image, credential })
    }

    pub(crate) async fn status(&self, image: &str) -> Result<Option<Image>> {
        let Some(id) = self.id_of(image).await? else { return Ok(None) };
        Ok(self.find(&id).await?.map(|(found, _)| found))
    }

    /// The image of that id, if all of it is here.
    async fn find(&self, id: &str) -> Result<Option<(Image, Arc<Resolved>)>> {
        let Some(found) = self.all().await?.remove(id) else { return Ok(None) };
        Ok(self.is_usable(&found.1).await?.then_some(found))
    }

    pub(crate) async fn list(&self) -> Result<Vec<Image>> {
        Ok(self.all().await?.into_values().map(|(image, _)| image).collect())
    }

    /// What is recorded, by image id.
    async fn all(&self) -> Result<BTreeMap<String, (Image, Arc<Resolved>)>> {
        let records = self.records().await?;
        let digests: HashSet<&str> = records.iter().filter_map(digest_in).collect();
        self.cache.lock().retain(|digest, _| digests.contains(digest.as_str()));
        let mut images: BTreeMap<String, (Image, Arc<Resolved>)> = BTreeMap::new();
        for record in &records {
            let Some(digest) = digest_in(record) else { continue };
            let Some(resolved) = self.resolve(digest).await? else { continue };
            let (image, _) = images.entry(resolved.id.clone()).or_insert_with(|| {
                let image = Image {
                    id: resolved.id.clone(),
                    repo_tags: Vec::new(),
                    repo_digests: Vec::new(),
                    size_bytes: resolved.size_bytes,
                    user: resolved.process.user.clone(),
                };
                (image, resolved)
            });
            let names =
                if record.name.contains('@') { &mut image.repo_digests } else { &mut image.repo_tags };
            names.push(record.name.clone());
        }
        Ok(images)
    }

    pub(crate) async fn remove(&self, image: &str) -> Result<()> {
        let Some(id) = self.id_of(image).await? else { return Ok(()) };
        for record in self.records().await? {
            let digest = record.target.map(|target| target.digest).unwrap_or_default();
            if self.resolve(&digest).await?.is_some_and(|resolved| resolved.id == id) {
                let delete = DeleteImageRequest { name: record.name, ..Default::default() };
                rpc::remove("delete image", self.rpc.images().delete(delete)).await?;
            }
        }
        Ok(())
    }

    /// The image that a container is made of.
    pub(crate) async fn usable(&self, image: &str) -> Result<UsableImage> {
        let absent = || Error::NotFound { kind: "image", id: image.to_owned() };
        let id = self.id_of(image).await?.ok_or_else(absent)?;
        let (found, resolved) = self.find(&id).await?.ok_or_else(absent)?;
        let image_ref = found.repo_digests.first().unwrap_or(&found.id).clone();
        Ok(UsableImage { resolved, image_ref })
    }

    /// Account files of an image, read once.
    pub(crate) async fn accounts<'a>(&self, image: &'a Resolved) -> Result<&'a Accounts> {
        if image.chain_id.is_empty() {
            return Ok(image.accounts.get_or_init(|| async { Accounts::default() }).await);
        }
        image.accounts.get_or_try_init(|| self.read_accounts(&image.chain_id)).await
    }

    async fn read_accounts(&self, chain_id: &str) -> Result<Accounts> {
        let key = format!("accounts {chain_id}");
        let remove = || {
            let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.clone() };
            async move { rpc::remove("remove snapshot", self.rpc.snapshots().remove(request)).await }
        };
        // A view that an earlier agent left behind.
        remove().await?;
        let request = ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: chain_id.to_owned(),
            labels: HashMap::new(),
        };
        let view = rpc::call("view snapshot", self.rpc.snapshots().view(request)).await?;
        let read = tokio::task::spawn_blocking(move || accounts::read(&view.mounts)).await;
        remove().await?;
        Ok(read.unwrap_or_default())
    }

    async fn is_usable(&self, image: &Resolved) -> Result<bool> {
        if image.chain_id.is_empty() {
            return Ok(true);
        }
        unpack::is_unpacked(&self.rpc, &self.snapshotter, &image.chain_id).await
    }

    async fn id_of(&self, image: &str) -> Result<Option<String>> {
        if reference::is_image_id(image) {
            return Ok(Some(image.to_owned()));
        }
        let name = reference::record_name(&reference::parse(image)?);
        let request = GetImageRequest { name };
        let record = rpc::find("look up image", self.rpc.images().get(request)).await?;
        let Some(target) = record.and_then(|r| r.image).and_then(|image| image.target) else {
            return Ok(None);
        };
        Ok(self.resolve(&target.digest).await?.map(|resolved| resolved.id.clone()))
    }

    /// Reads the documents that `digest` leads to; `None` when they are not (all) here.
    async fn resolve(&self, digest: &str) -> Result<Option<Arc<Resolved>>> {
        if let Some(resolved) = self.cache.lock().get(digest) {
            return Ok(Some(Arc::clone(resolved)));
        }
        let Some(resolved) = self.read_documents(digest).await? else { return Ok(None) };
        let resolved = Arc::new(resolved);
        self.cache.lock().insert(digest.to_owned(), Arc::clone(&resolved));
        Ok(Some(resolved))
    }

    async fn read_documents(&self, digest: &str) -> Result<Option<Resolved>> {
        let parse = |bytes: Vec<u8>| Document::parse(&bytes).ok().map(|(document, _)| document);
        let Some(bytes) = content::read(&self.rpc, digest).await? else { return Ok(None) };
        let manifest = match parse(bytes) {
            Some(Document::Manifest(manifest)) => manifest,
            Some(Document::Index(index)) => {
                let Some(chosen) = index.choose(config::architecture()) else { return Ok(None) };
                let Some(bytes) = content::read(&self.rpc, &chosen.digest).await? else { return Ok(None) };
                let Some(Document::Manifest(manifest)) = parse(bytes) else { return Ok(None) };
                manifest
            }
            None => return Ok(None),
        };
        let Some(bytes) = content::read(&self.rpc, &manifest.config.digest).await? else { return Ok(None) };
        let Ok(config) = ImageConfig::parse(&bytes) else { return Ok(None) };
        Ok(Some(Resolved {
            id: manifest.config.digest.clone(),
            chain_id: config::chain_ids(&config.diff_ids).pop().unwrap_or_default(),
            process: config.process,
            size_bytes: size_of(&manifest),
            accounts: tokio::sync::OnceCell::new(),
        }))
    }

    async fn records(&self) -> Result<Vec<Record>> {
        let filters = vec![format!("labels.\"{MANAGED_LABEL}\"==v1")];
        let answer = rpc::call("list images", self.rpc.images().list(ListImagesRequest { filters })).await?;
        Ok(answer.images)
    }

    async fn record(&self, name: &str, target: &types::Descriptor) -> Result<()> {
        let record = Record {
            name: name.to_owned(),
            labels: HashMap::from([(MANAGED_LABEL.to_owned(), "v1".to_owned())]),
            target: Some(target.clone()),
            ..Default::default()
        };
        let create = CreateImageRequest { image: Some(record.clone()), ..Default::default() };
        if rpc::create("create image", self.rpc.images().create(create)).await? {
            return Ok(());
        }
        let update = UpdateImageRequest { image: Some(record), ..Default::default() };
        rpc::call("update image", self.rpc.images().update(update)).await.map(|_| ())
    }

    async fn create_lease(&self, id: &str) -> Result<()> {
        let expires = jiff::Timestamp::now() + LEASE_LIFETIME;
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let request = CreateRequest { id: id.to_owned(), labels };
        rpc::create("create lease", self.rpc.leases().create(request)).await.map(|_| ())
    }
}

/// One pull that is under way.
struct Pull<'a> {
    images: &'a Images,
    rpc: Rpc,
    reference: &'a Reference,
    progress: Option<ProgressSender>,
}

impl Pull<'_> {
    /// Returns what the reference points at, and which of `auth` the registry took.
    async fn run(&self, auth: &[RegistryAuth]) -> Result<(types::Descriptor, Option<usize>), Failure> {
        let mut tried = 0;
        loop {
            let Found { source, manifest, tries } =
                Source::find(self.reference, &self.images.registries, auth, tried).await?;
            match self.take(&source, &manifest).await {
                // A mirror may have lost a part of what it shows; what has come by then is not fetched again.
                Err(_) if source.is_mirror() => tried = tries,
                taken => return taken.map(|target| (target, source.credential)),
            }
        }
    }

    async fn take(&self, source: &Source, bytes: &[u8]) -> Result<types::Descriptor, Failure> {
        let digest = digest_of(bytes);
        let (document, media_type) = Document::parse(bytes).map_err(bad_image)?;
        let labels = match document {
            Document::Manifest(manifest) => {
                self.unpack_all(source, &manifest).await?;
                config::gc_labels(&Document::Manifest(manifest), None)
            }
            Document::Index(index) => {
                let architecture = config::architecture();
                let chosen = index.choose(architecture).ok_or_else(|| Failure {
                    kind: PullErrorKind::NoMatchingPlatform,
                    message: format!(
                        "no match for platform linux/{architecture} among {}",
                        index.platforms().join(", ")
                    ),
                })?;
                let child = source.manifest_by_digest(&chosen.digest).await?;
                let (Document::Manifest(manifest), _) = Document::parse(&child).map_err(bad_image)? else {
                    return Err(bad_image(format!("{} is an index inside an index", chosen.digest)));
                };
                self.unpack_all(source, &manifest).await?;
                let (digest, labels) = (&chosen.digest, Document::Manifest(manifest.clone()));
                content::write_document(&self.rpc, digest, &child, config::gc_labels(&labels, None))
                    .await
                    .map_err(store)?;
                config::gc_labels(&Document::Index(index.clone()), Some(digest))
            }
        };
        content::write_document(&self.rpc, &digest, bytes, labels).await.map_err(store)?;
        let size = bytes.len() as i64;
        Ok(types::Descriptor { digest, media_type, size, annotations: HashMap::new() })
    }

    /// Fetches and unpacks all that a manifest names: layers arrive in parallel and are unpacked in
    /// order, each as soon as it is here.
    async fn unpack_all(&self, source: &Source, manifest: &Manifest) -> Result<(), Failure> {
        let config_bytes = content::fetch_document(source, &manifest.config).await?;
        let config = ImageConfig::parse(&config_bytes).map_err(bad_image)?;
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(bad_image(format!(
                "configuration names {} layers, manifest {}",
                config.diff_ids.len(),
                manifest.layers.len()
            )));
        }
        let total_bytes = size_of(manifest);
        self.report(PullProgress::Resolved { digest: manifest.config.digest.clone(), total_bytes });
        let chain = config::chain_ids(&config.diff_ids);
        let mut labels = HashMap::new();
        if let Some(top) = chain.last() {
            let key = format!("containerd.io/gc.ref.snapshot.{}", self.images.snapshotter);
            labels.insert(key, top.clone());
        }
        let config_digest = &manifest.config.digest;
        content::write_document(&self.rpc, config_digest, &config_bytes, labels).await.map_err(store)?;

        let layers = manifest.layers.iter().enumerate();
        let fetches: Vec<_> = layers.map(|(index, layer)| self.fetch(source, index, layer).boxed()).collect();
        // As many as there are layers, so that a fetch never waits for the one that is being unpacked.
        let (arrived, mut in_order) = mpsc::channel(manifest.layers.len().max(1));
        let fetching = async move {
            let mut fetched = futures::stream::iter(fetches).buffered(PARALLEL_LAYERS);
            while let Some(index) = fetched.try_next().await? {
                // Fails when unpacking has failed, which ends this as well.
                let _ = arrived.send(index).await;
            }
            Ok(())
        };
        let unpacking = async {
            while let Some(index) = in_order.recv().await {
                let layer = unpack::Layer {
                    descriptor: &manifest.layers[index],
                    diff_id: &config.diff_ids[index],
                    chain_id: &chain[index],
                    parent: index.checked_sub(1).map_or("", |below| &chain[below]),
                };
                self.report(PullProgress::Unpacking { digest: layer.descriptor.digest.clone() });
                let _one_at_a_time = self.images.locks.lock(&format!("unpack {}", layer.chain_id)).await;
                unpack::unpack(&self.rpc, &self.images.snapshotter, &layer).await?;
            }
            Ok::<(), Failure>(())
        };
        tokio::try_join!(fetching, unpacking).map(|_| ())
    }

    async fn fetch(&self, source: &Source, index: usize, layer: &Descriptor) -> Result<usize, Failure> {
        let _one_at_a_time = self.images.locks.lock(&format!("fetch {}", layer.digest)).await;
        let on_progress = |fetched_bytes| {
            let (digest, total_bytes) = (layer.digest.clone(), layer.size);
            self.report(PullProgress::Layer { digest, fetched_bytes, total_bytes });
        };
        content::fetch(&self.rpc, source, layer, &on_progress).await.map(|()| index)
    }

    fn report(&self, progress: PullProgress) {
        if let Some(sender) = &self.progress {
            // Full means that nobody looks right now; the next message says more anyway.
            let _ = sender.try_send(progress);
        }
    }
}

fn digest_in(record: &Record) -> Option<&str> {
    record.target.as_ref().map(|target| target.digest.as_str())
}

fn size_of(manifest: &Manifest) -> u64 {
    manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size
}

fn bad_image(message: String) -> Failure {
    Failure { kind: PullErrorKind::BadImage, message }
}

fn store(error: Error) -> Failure {
    Failure { kind: PullErrorKind::BadImage, message: error.to_string() }
}
