//! Debian's `docker-registry`, and pushing to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use reqwest::header::{CONTENT_TYPE, LOCATION};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::find_program;
use super::server::Server;

/// Whom the registry lets in.
#[derive(Clone, Debug)]
pub enum Access {
    Anybody,
    Basic {
        username: String,
        password: String,
    },
    /// Who has a token of the server at `realm`, signed with the key of `certificate` (PEM).
    Token {
        realm: String,
        service: String,
        issuer: String,
        certificate: String,
    },
}

/// A certificate for 127.0.0.1 and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate: String,
    pub key: String,
}

/// A running registry; stopped when it is dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    /// `http://127.0.0.1:<port>`, or `https`.
    pub url: String,
    server: Server,
}

impl DockerRegistry {
    /// Stops it now.
    pub fn stop(&self) {
        self.server.kill();
    }

    /// Starts a registry with its images below `images` and its settings below `folder`; `None`, with a line that says
    /// so, where the program is missing. Several may serve the same images.
    ///
    /// # Errors
    /// When it does not listen in time, with what it said.
    pub fn start(folder: &Path, images: &Path, access: &Access, tls: Option<&Tls>) -> Result<Option<Self>> {
        let program = match find_program("docker-registry", &[]) {
            Ok(program) => program.display().to_string(),
            Err(missing) => {
                #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
                {
                    println!("SKIPPED: a real image registry, because {missing}");
                }
                return Ok(None);
            }
        };
        let settings = settings(folder, images, access, tls)?.display().to_string();
        let command = move |server: &Server| {
            let address = format!("REGISTRY_HTTP_ADDR={}", server.address());
            ["env", &address, &program, "serve", &settings]
                .map(str::to_owned)
                .into()
        };
        // That somebody listens at the port is not enough: it could be somebody else.
        let listens = |server: &Server| {
            let said = format!("listening on {}", server.address());
            fs::read_to_string(server.log()).is_ok_and(|log| log.contains(&said))
        };
        let server = Server::start("registry", command, listens)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Some(Self {
            url: format!("{scheme}://{}", server.address()),
            server,
        }))
    }
}

/// Writes the settings, all but the address.
fn settings(folder: &Path, images: &Path, access: &Access, tls: Option<&Tls>) -> Result<PathBuf> {
    let mut http = json!({ "secret": "for tests" });
    if let Some(tls) = tls {
        let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        fs::write(&certificate, &tls.certificate)?;
        fs::write(&key, &tls.key)?;
        http["tls"] = json!({ "certificate": certificate, "key": key });
    }
    let mut settings = json!({
        "version": "0.1",
        "log": { "level": "info", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": images }, "delete": { "enabled": true } },
        "http": http,
    });
    if let Some(auth) = auth(folder, access)? {
        settings["auth"] = auth;
    }
    // JSON is YAML.
    let file = folder.join("registry.yml");
    fs::write(&file, settings.to_string())?;
    Ok(file)
}

fn auth(folder: &Path, access: &Access) -> Result<Option<Value>> {
    Ok(match access {
        Access::Anybody => None,
        Access::Basic { username, password } => {
            let file = folder.join("htpasswd");
            fs::write(&file, format!("{username}:{}\n", bcrypt::hash(password, 4)?))?;
            Some(json!({ "htpasswd": { "realm": "tests", "path": file } }))
        }
        Access::Token {
            realm,
            service,
            issuer,
            certificate,
        } => {
            let file = folder.join("tokens.crt");
            fs::write(&file, certificate)?;
            Some(json!({ "token": {
                "realm": realm, "service": service, "issuer": issuer, "rootcertbundle": file,
            } }))
        }
    })
}

/// Media types: of an image and of a list of platforms, as Docker and as others write them.
pub const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Pushes to an open registry.
#[derive(Debug)]
pub struct Pusher {
    url: String,
    http: reqwest::Client,
}

/// What was pushed as a manifest.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Of the manifest.
    pub digest: String,
    /// Of the configuration.
    pub config: String,
    pub size_bytes: usize,
    manifest_bytes: usize,
    media_type: String,
}

impl Pusher {
    pub fn new(registry: &DockerRegistry) -> Result<Self> {
        // Another client of this process may have installed it.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self {
            url: registry.url.clone(),
            http,
        })
    }

    /// An image of one layer with this configuration, as Docker (`DOCKER`) or others (`OCI`) write it.
    pub async fn image(
        &self,
        name: &str,
        reference: Option<&str>,
        media_type: &str,
        config: &str,
    ) -> Result<Pushed> {
        let kind = if media_type == OCI {
            "application/vnd.oci"
        } else {
            "application/vnd.docker"
        };
        let (config_type, layer_type) = if media_type == OCI {
            (
                format!("{kind}.image.config.v1+json"),
                format!("{kind}.image.layer.v1.tar+gzip"),
            )
        } else {
            (
                format!("{kind}.container.image.v1+json"),
                format!("{kind}.image.rootfs.diff.tar.gzip"),
            )
        };
        let layer = format!("the layer of {name} {reference:?}");
        let (config_digest, layer_digest) = (self.blob(name, config).await?, self.blob(name, &layer).await?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": { "mediaType": config_type, "size": config.len(), "digest": config_digest },
            "layers": [{ "mediaType": layer_type, "size": layer.len(), "digest": layer_digest }],
        })
        .to_string();
        let digest = self.manifest(name, reference, media_type, &manifest).await?;
        Ok(Pushed {
            digest,
            config: config_digest,
            size_bytes: config.len() + layer.len(),
            manifest_bytes: manifest.len(),
            media_type: media_type.to_owned(),
        })
    }

    /// A list of images for platforms.
    pub async fn list(
        &self,
        name: &str,
        tag: &str,
        media_type: &str,
        images: &[(&Pushed, &str)],
    ) -> Result<()> {
        let manifests = images.iter().map(|(image, architecture)| {
            json!({
                "mediaType": image.media_type, "digest": image.digest, "size": image.manifest_bytes,
                "platform": { "os": "linux", "architecture": architecture },
            })
        });
        let list = json!({
            "schemaVersion": 2, "mediaType": media_type, "manifests": Value::from_iter(manifests),
        });
        self.manifest(name, Some(tag), media_type, &list.to_string())
            .await?;
        Ok(())
    }

    async fn blob(&self, name: &str, content: &str) -> Result<String> {
        let digest = digest(content);
        let start = self
            .http
            .post(format!("{}/v2/{name}/blobs/uploads/", self.url))
            .send()
            .await?;
        let location = start.error_for_status()?;
        let location = location
            .headers()
            .get(LOCATION)
            .context("no upload")?
            .to_str()?
            .to_owned();
        let mut location = reqwest::Url::parse(&self.url)?.join(&location)?;
        location.query_pairs_mut().append_pair("digest", &digest);
        let upload = self.http.put(location).body(content.to_owned());
        upload.send().await?.error_for_status()?;
        Ok(digest)
    }

    async fn manifest(
        &self,
        name: &str,
        tag: Option<&str>,
        media_type: &str,
        manifest: &str,
    ) -> Result<String> {
        let digest = digest(manifest);
        let reference = tag.unwrap_or(&digest);
        let put = self
            .http
            .put(format!("{}/v2/{name}/manifests/{reference}", self.url));
        let put = put.header(CONTENT_TYPE, media_type).body(manifest.to_owned());
        let answer = put.send().await?;
        if !answer.status().is_success() {
            bail!("{name}:{reference} was refused: {}", answer.text().await?);
        }
        Ok(digest)
    }
}

fn digest(content: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
