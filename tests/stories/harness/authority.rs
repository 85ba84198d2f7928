//! An authority of certificates, and what it signs, as PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use device_sim::mqtt::Tls;
use device_sim::trust::Trust;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};

/// An authority. Its files lie in one folder, each named after what it holds.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
    folder: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Certified {
    pub cert: PathBuf,
    pub key: PathBuf,
    serial: SerialNumber,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            file,
            folder: folder.to_owned(),
        }
    }

    /// For a listener on this machine. A second one of that name takes the place of the first.
    pub fn server(&self, name: &str) -> Certified {
        self.server_until(name, 2090)
    }

    /// The same, expiring with the beginning of that year.
    pub fn server_until(&self, name: &str, year: i32) -> Certified {
        let mut params = named(name);
        params.not_after = date_time_ymd(year, 1, 1);
        let own = ["127.0.0.1", "localhost"].map(str::to_owned);
        params.subject_alt_names = CertificateParams::new(own).unwrap().subject_alt_names;
        self.sign(name, params)
    }

    /// For the device of that id.
    pub fn device(&self, id: &str) -> Certified {
        self.sign(id, named(id))
    }

    fn sign(&self, name: &str, mut params: CertificateParams) -> Certified {
        let key = KeyPair::generate().unwrap();
        // Any number that no other certificate of the authority has.
        let serial = SerialNumber::from_slice(&key.public_key_raw()[..16]);
        params.serial_number = Some(serial.clone());
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let file = name.replace('/', "-");
        let certified = Certified {
            cert: self.folder.join(format!("{file}.cert.pem")),
            key: self.folder.join(format!("{file}.key.pem")),
            serial,
        };
        std::fs::write(&certified.cert, cert.pem()).unwrap();
        std::fs::write(&certified.key, key.serialize_pem()).unwrap();
        certified
    }

    /// The list of what is revoked; it takes the place of the one before.
    pub fn revoke(&self, revoked: &[&Certified]) -> PathBuf {
        let revoked = revoked.iter().map(|certified| RevokedCertParams {
            serial_number: certified.serial.clone(),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        let file = self.folder.join("revoked.pem");
        std::fs::write(&file, list.pem().unwrap()).unwrap();
        file
    }

    /// TLS to a listener of this machine that this authority has signed for, with a certificate of one's own or without.
    pub fn tls(&self, own: Option<&Certified>) -> Tls {
        let mut tls = Trust::read(Some(&self.file))
            .unwrap()
            .mqtt("127.0.0.1")
            .unwrap();
        if let Some(own) = own {
            let chain = vec![CertificateDer::from_pem_file(&own.cert).unwrap()];
            let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
            let mut config = ClientConfig::clone(&tls.config);
            let key = config.crypto_provider().key_provider.load_private_key(key);
            let own = CertifiedKey::new(chain, key.unwrap());
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(own));
            tls.config = Arc::new(config);
        }
        tls
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}
