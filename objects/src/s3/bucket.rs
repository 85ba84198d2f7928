//! A bucket: each request has its deadline, and each error says where and what it was for. The client has no time-outs of
//! its own.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, ObjectStream};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use minio::s3::builders::CreateMultipartUpload;
use minio::s3::creds::StaticProvider;
use minio::s3::error::Error;
use minio::s3::http::BaseUrl;
use minio::s3::multimap_ext::{Multimap, MultimapExt as _};
use minio::s3::response_traits::HasEtagFromHeaders as _;
use minio::s3::segmented_bytes::SegmentedBytes;
use minio::s3::types::{BucketName, ObjectKey, PartInfo, Region, S3Api, UploadId};
use minio::s3::utils::from_iso8601utc;
use minio::s3::{MinioClient, MinioClientBuilder};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::S3Settings;
use super::error::{S3Error, Why};
use super::mark::{MARK, MAX_MARK};

/// How long an answer without a body may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a part may take: 8 MiB at some 70 kB/s, beside another one.
const PART: Duration = Duration::from_mins(2);
/// How long the server may take to put the parts of an image together.
const COMPLETE: Duration = Duration::from_mins(2);
/// How long the next piece of a body may take.
const PIECE: Duration = Duration::from_secs(30);

/// A bucket and the keys to it.
#[derive(Debug)]
pub(super) struct Bucket {
    client: MinioClient,
    /// Makes links to where clients reach it.
    public: Option<MinioClient>,
    name: BucketName,
    at: String,
}

/// What is left of a body.
struct Body {
    pieces: stream::BoxStream<'static, Result<Bytes, std::io::Error>>,
    left: u64,
}

impl Bucket {
    /// Looks at the settings and asks nobody.
    pub(super) fn new(settings: &S3Settings) -> Result<Self, S3Error> {
        let at = format!("{}/{}", settings.endpoint, settings.bucket);
        let wrong = |what: String| S3Error {
            at: at.clone(),
            doing: "reading the settings",
            why: Why::Settings(what),
        };
        let name = BucketName::new(&settings.bucket).map_err(|error| wrong(error.to_string()))?;
        let client = |endpoint: &str| {
            let mut url: BaseUrl = endpoint.parse().map_err(|e| wrong(format!("{e}")))?;
            url.region = Region::new(&settings.region).map_err(|e| wrong(e.to_string()))?;
            let keys = StaticProvider::new(&settings.access_key, &settings.secret_key, None);
            let builder = MinioClientBuilder::new(url).provider(Some(keys));
            builder.build().map_err(|e| wrong(e.to_string()))
        };
        Ok(Self {
            client: client(&settings.endpoint)?,
            public: settings
                .public_endpoint
                .as_deref()
                .map(client)
                .transpose()?,
            name,
            at,
        })
    }

    fn error(&self, doing: &'static str, why: impl Into<Why>) -> S3Error {
        S3Error {
            at: self.at.clone(),
            doing,
            why: why.into(),
        }
    }

    async fn asked<T>(
        &self,
        doing: &'static str,
        within: Duration,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, S3Error> {
        match timeout(within, answer).await {
            Ok(answer) => answer.map_err(|error| self.error(doing, error)),
            Err(_) => Err(self.error(doing, Why::TimedOut(within))),
        }
    }

    /// Makes the bucket unless it is there.
    pub(super) async fn make(&self) -> Result<(), S3Error> {
        if self.exists().await? {
            return Ok(());
        }
        let made = async { self.client.create_bucket(&self.name)?.build().send().await };
        match self.asked("making the bucket", ANSWER, made).await {
            Ok(_) => {
                tracing::info!(s3.bucket = %self.at, "made the bucket");
                Ok(())
            }
            // Another replica was faster.
            Err(error) if error.code() == Some("bucketalreadyownedbyyou") => Ok(()),
            Err(error) => match self.exists().await {
                Ok(true) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Makes sure that this is the bucket that says so of itself.
    pub(super) async fn is(&self, id: &str) -> Result<(), S3Error> {
        let found = if self.exists().await? {
            match self.mark().await? {
                Some(mark) if mark == id => return Ok(()),
                Some(_) => "the bucket is another database's",
                None => "the bucket is not marked as its own",
            }
        } else {
            "there is no such bucket"
        };
        let id = id.to_owned();
        Err(self.error("knowing the bucket again", Why::Another { found, id }))
    }

    /// Which bucket it says that it is, if it has been said.
    pub(super) async fn mark(&self) -> Result<Option<String>, S3Error> {
        let doing = "reading which bucket it is";
        let answer = async {
            let request = self.client.get_object(&self.name, ObjectKey::new(MARK)?)?;
            request.build().send().await?.into_boxed_stream()
        };
        let (pieces, left) = match self.asked(doing, ANSWER, answer).await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("nosuchkey") => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut body, mut mark) = (Body { pieces, left }, Vec::new());
        while mark.len() <= MAX_MARK
            && let Some(piece) = body.next(&self.at).await?
        {
            mark.extend_from_slice(&piece);
        }
        let text = String::from_utf8_lossy(&mark);
        Ok(Some(text.trim().to_owned()))
    }

    /// Writes down which bucket it is.
    pub(super) async fn set_mark(&self, id: &str) -> Result<(), S3Error> {
        let put = async {
            let bytes = SegmentedBytes::from(Bytes::copy_from_slice(id.as_bytes()));
            let request = self
                .client
                .put_object(&self.name, ObjectKey::new(MARK)?, bytes)?;
            request.build().send().await
        };
        let doing = "writing down which bucket it is";
        self.asked(doing, ANSWER, put).await.map(drop)
    }

    async fn exists(&self) -> Result<bool, S3Error> {
        let found = async { self.client.bucket_exists(&self.name)?.build().send().await };
        let found = self.asked("looking for the bucket", ANSWER, found).await?;
        Ok(found.exists())
    }

    /// Proves that the server answers and lets us look at the bucket.
    pub(super) async fn ping(&self) -> Result<(), S3Error> {
        if self.exists().await? {
            return Ok(());
        }
        let why = Why::Answered {
            code: "nosuchbucket".to_owned(),
            message: String::new(),
        };
        Err(self.error("looking for the bucket", why))
    }

    /// Bytes of an object; `None` when it is not there.
    pub(super) async fn size(&self, name: &str) -> Result<Option<u64>, S3Error> {
        let found = async {
            let request = self.client.stat_object(&self.name, key(name)?)?.build();
            Ok(request.send().await?.size()?)
        };
        match self.asked("looking for an image", ANSWER, found).await {
            Ok(size) => Ok(Some(size)),
            Err(error) if error.code() == Some("nosuchkey") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes `range` of an object. One that ends before the range does is an error: it is not what was asked.
    pub(super) async fn open(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<ObjectStream, ObjectError> {
        if range.is_empty() {
            return match self.size(name).await? {
                Some(_) => Ok(Box::pin(stream::empty())),
                None => Err(ObjectError::Missing(name.to_owned())),
            };
        }
        let body = self.body(name, &range).await?;
        let at = self.at.clone();
        Ok(Box::pin(stream::try_unfold(body, move |mut body| {
            let at = at.clone();
            async move {
                if body.left == 0 {
                    return Ok(None);
                }
                let piece = body.next(&at).await?.ok_or_else(|| ends_early(&at))?;
                Ok(Some((piece, body)))
            }
        })))
    }

    /// Up to `length` bytes at `offset`; fewer at the end.
    pub(super) async fn read(
        &self,
        name: &str,
        offset: u64,
        length: usize,
    ) -> Result<Bytes, ObjectError> {
        let range = offset..offset.saturating_add(length as u64);
        if range.is_empty() {
            return match self.size(name).await? {
                Some(_) => Ok(Bytes::new()),
                None => Err(ObjectError::Missing(name.to_owned())),
            };
        }
        let mut body = match self.body(name, &range).await {
            Ok(body) => body,
            Err(Unread::PastTheEnd) => return Ok(Bytes::new()),
            Err(unread) => return Err(unread.into()),
        };
        let mut read = Vec::with_capacity(length);
        while body.left > 0 {
            let Some(piece) = body.next(&self.at).await? else {
                break;
            };
            read.extend_from_slice(&piece);
        }
        Ok(read.into())
    }

    async fn body(&self, name: &str, range: &Range<u64>) -> Result<Body, Unread> {
        let length = range.end.saturating_sub(range.start);
        let answer = async {
            let request = self.client.get_object(&self.name, key(name)?)?;
            let request = request.offset(range.start).length(length).build();
            request.send().await?.into_boxed_stream()
        };
        match self.asked("reading an image", ANSWER, answer).await {
            Ok((pieces, sent)) if sent <= length => Ok(Body {
                pieces,
                left: length,
            }),
            Ok(_) => Err(Unread::Failed(self.error(
                "reading an image",
                Why::NoS3("it answers with more than the range that was asked for".to_owned()),
            ))),
            Err(error) => match error.code() {
                Some("nosuchkey") => Err(Unread::Missing(name.to_owned())),
                Some("invalidrange") => Err(Unread::PastTheEnd),
                _ => Err(Unread::Failed(error)),
            },
        }
    }

    /// The SHA-256 of what is there, in hex.
    pub(super) async fn digest(&self, name: &str, size: u64) -> Result<String, ObjectError> {
        let mut pieces = self.open(name, 0..size).await?;
        let mut hasher = Sha256::new();
        while let Some(piece) = pieces.try_next().await? {
            hasher.update(&piece);
        }
        Ok(hex::encode(hasher.finalize()))
    }

    /// What was read back is not what was uploaded.
    pub(super) fn damaged(&self) -> S3Error {
        self.error("reading an image back", Why::Damaged)
    }

    /// Writes a small object in one request.
    pub(super) async fn put(&self, name: &str, bytes: SegmentedBytes) -> Result<(), S3Error> {
        let put = async {
            let request = self.client.put_object(&self.name, key(name)?, bytes)?;
            request.build().send().await
        };
        self.asked("writing an image", PART, put).await.map(drop)
    }

    /// Begins an object of several parts.
    pub(super) async fn begin(&self, name: &str) -> Result<UploadId, S3Error> {
        let begun = async {
            let request = self
                .client
                .create_multipart_upload(&self.name, key(name)?)?;
            let request: CreateMultipartUpload = request.build();
            Ok(request.send().await?.upload_id().await?)
        };
        self.asked("beginning an image", ANSWER, begun).await
    }

    /// Writes a part. The request is signed with the SHA-256 of the bytes, which the server compares.
    pub(super) async fn put_part(
        &self,
        name: &str,
        upload: &UploadId,
        number: u16,
        bytes: SegmentedBytes,
    ) -> Result<PartInfo, S3Error> {
        let size = bytes.len() as u64;
        let put = async {
            let (key, upload) = (key(name)?, upload.clone());
            let request = self
                .client
                .upload_part(&self.name, key, upload, number, bytes)?;
            Ok(request.build().send().await?.etag()?)
        };
        let etag = self.asked("writing a part of an image", PART, put).await?;
        Ok(PartInfo::new(number, etag, size, None))
    }

    /// Makes the parts an object.
    pub(super) async fn complete(
        &self,
        name: &str,
        upload: &UploadId,
        parts: Vec<PartInfo>,
    ) -> Result<(), S3Error> {
        let done = async {
            let (key, upload) = (key(name)?, upload.clone());
            let request = self
                .client
                .complete_multipart_upload(&self.name, key, upload, parts)?;
            request.build().send().await
        };
        self.asked("putting an image together", COMPLETE, done)
            .await
            .map(drop)
    }

    /// Takes the parts back; it is no error when they are gone.
    pub(super) async fn abort(&self, name: &str, upload: &UploadId) -> Result<(), S3Error> {
        let aborted = async {
            let (key, upload) = (key(name)?, upload.clone());
            let request = self
                .client
                .abort_multipart_upload(&self.name, key, upload)?;
            request.build().send().await
        };
        match self.asked("taking parts back", ANSWER, aborted).await {
            Err(error) if error.code() != Some("nosuchupload") => Err(error),
            _ => Ok(()),
        }
    }

    /// A presigned link to where clients reach the server, if they do.
    pub(super) async fn link(
        &self,
        name: &str,
        file_name: &str,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Option<String>, S3Error> {
        let Some(public) = &self.public else {
            return Ok(None);
        };
        let signed = async {
            let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
            let mut query = Multimap::new();
            query.add(
                "response-content-disposition",
                format!("attachment; filename=\"{file_name}\""),
            );
            let request =
                public.get_presigned_object_url(&self.name, key(name)?, http::Method::GET)?;
            let request = request
                .extra_query_params(query)
                .request_time(from_iso8601utc(&seconds.to_string())?)
                .expiry_seconds(u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX));
            Ok(request.build().send().await?.url)
        };
        self.asked("signing a link", ANSWER, signed).await.map(Some)
    }
}

impl Body {
    /// The next piece, never more than is left.
    async fn next(&mut self, at: &str) -> Result<Option<Bytes>, S3Error> {
        let doing = "reading an image";
        let failed = |why| S3Error {
            at: at.to_owned(),
            doing,
            why,
        };
        let piece = match timeout(PIECE, self.pieces.next()).await {
            Err(_) => return Err(failed(Why::TimedOut(PIECE))),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(failed(Why::Unreachable(error.to_string()))),
            Ok(Some(Ok(piece))) => piece,
        };
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok(Some(piece))
    }
}

/// Why an object was not read.
enum Unread {
    Missing(String),
    PastTheEnd,
    Failed(S3Error),
}

impl From<Unread> for ObjectError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Missing(name) => Self::Missing(name),
            Unread::PastTheEnd => {
                Self::Unavailable("the object is shorter than it should be".into())
            }
            Unread::Failed(error) => error.into(),
        }
    }
}

fn ends_early(at: &str) -> ObjectError {
    ObjectError::Unavailable(format!("S3 at {at}: an image is shorter than it should be").into())
}

/// Where an object is in the bucket.
fn key(name: &str) -> Result<ObjectKey, Error> {
    Ok(ObjectKey::new(format!("objects/{name}"))?)
}
