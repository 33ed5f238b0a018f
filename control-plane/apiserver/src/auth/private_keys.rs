//! The public part of private keys, in the forms that openssl and kubeadm write: a file with the key that signs is good for
//! checking, too.
//!
//! PKCS#8 (`PRIVATE KEY`), PKCS#1 (`RSA PRIVATE KEY`) and SEC 1 (`EC PRIVATE KEY`, RFC 5915), which has to say its curve and
//! its public key, as is usual. What does not fit together is refused.

use ring::{
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, KeyPair,
    },
};
use yasna::{Tag, construct_der, models::ObjectIdentifier, parse_der};

const EC_KEY: &[u64] = &[1, 2, 840, 10_045, 2, 1];
const RSA_KEY: &[u64] = &[1, 2, 840, 113_549, 1, 1, 1];

/// Curves by their names, with what signs on them.
static CURVES: [(&[u64], &EcdsaSigningAlgorithm); 2] = [
    (&[1, 2, 840, 10_045, 3, 1, 7], &ECDSA_P256_SHA256_FIXED_SIGNING),
    (&[1, 3, 132, 0, 34], &ECDSA_P384_SHA384_FIXED_SIGNING),
];

/// The SubjectPublicKeyInfo of a private key in a PEM block with that label; `None` for what is no such key.
pub(super) fn public_part(label: &str, der: &[u8]) -> Option<Vec<u8>> {
    match label {
        "RSA PRIVATE KEY" => rsa::KeyPair::from_der(der).ok().map(|pair| of_rsa(&pair)),
        "EC PRIVATE KEY" => of_sec1(der),
        "PRIVATE KEY" => match rsa::KeyPair::from_pkcs8(der) {
            Ok(pair) => Some(of_rsa(&pair)),
            Err(_) => CURVES.iter().find_map(|(curve, signing)| {
                let pair = EcdsaKeyPair::from_pkcs8(signing, der, &SystemRandom::new()).ok()?;
                Some(of_ec(curve, pair.public_key().as_ref()))
            }),
        },
        _ => None,
    }
}

fn of_sec1(der: &[u8]) -> Option<Vec<u8>> {
    let read = parse_der(der, |reader| {
        reader.read_sequence(|reader| {
            reader.next().read_u8()?;
            let private = reader.next().read_bytes()?;
            let curve = reader.next().read_tagged(Tag::context(0), |reader| reader.read_oid())?;
            let (public, _) =
                reader.next().read_tagged(Tag::context(1), |reader| reader.read_bitvec_bytes())?;
            Ok((private, curve, public))
        })
    });
    let (private, curve, public) = read.ok()?;
    let (curve, signing) = CURVES.iter().find(|(known, _)| curve.components() == *known)?;
    EcdsaKeyPair::from_private_key_and_public_key(signing, &private, &public, &SystemRandom::new()).ok()?;
    Some(of_ec(curve, &public))
}

fn of_rsa(pair: &rsa::KeyPair) -> Vec<u8> {
    info(RSA_KEY, None, pair.public_key().as_ref())
}

fn of_ec(curve: &[u64], point: &[u8]) -> Vec<u8> {
    info(EC_KEY, Some(curve), point)
}

/// A SubjectPublicKeyInfo (RFC 5280); without a curve the algorithm's parameters are null, as RSA's are.
fn info(algorithm: &[u64], curve: Option<&[u64]>, key: &[u8]) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_sequence(|writer| {
                writer.next().write_oid(&ObjectIdentifier::from_slice(algorithm));
                match curve {
                    Some(curve) => writer.next().write_oid(&ObjectIdentifier::from_slice(curve)),
                    None => writer.next().write_null(),
                }
            });
            writer.next().write_bitvec_bytes(key, key.len() * 8);
        });
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair as Made, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData};
    use x509_parser::pem::Pem;

    use super::*;

    /// Made with openssl for this test alone.
    const RSA: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIEoAIBAAKCAQEAqd/buC1yVcqTpAXatQD5+cVdUXhi7yh4McqdCAVtTjEqyT+C
+BK1WEguvpp8r0FaQhe0Pd5Cl2aT7HTBBZwHr6j+WoHwZ6qwCwFWa4FAPkl9D/J9
eE7jSMTwcgcEcIlXzZmumQXVFzWi8X2iF+cxXWlXWy3SVBpp+9YF1ipPkeA9POsR
pOd1Yr4VQtlKdut/NYT+Ug15qBkKJrP1tdjLi7c+CJCo/MPLJbgux9xWfq0jV7vh
9HZ06r/KPVtNZxCrIzRRP/NgpUg+lIPMfkQbK5G9ApLcx1e9HbH4Fo+NpdrYRvBh
/X9KR1rE+VqDkhARfBBbkE6XJy1oqhbUW3a64QIDAQABAoIBAAWIX3kfrc4ig21/
rVBg4ENkzLXHFH3SlRuWDEhDGPzHeCvG0EaxIUvnSfJ2SKJSoBRv/jRXpVaWBjJY
2SKMIunzOJmNCt3tfr9VA1IMCyIcNaEL1k9RTnDDzUsBdIEP0BbHrxqXyIlxe0Wf
QGTD6GUw9aHoG6YWmCYWIemIRkArfmOlXmd1qoyP4b5JFvyb1lJ07RPxiQhLi+au
VrlmaRFTJaAqhUt32zQ5IRvx++iJQVz+CW15GROU3x8FmbvvHFStwPfFIIOniLgH
cU8h/IWaLxTXIDtgAjw4d3f/6nEGZhrNqQ2vpDRGFHP3kotXokpErU4Z9fhMz+jS
qzdT1XkCgYEA4OeRqG//ZY4wklHYtLJ4CUJLDIlPdQZmozLCV975mEIQyi5SBFwv
dmL4Ltl5JL3vyqCjkasOv/O5WLTcPsDxks76FGIP1kmyZhZM3s02A8wcbn3HpdvI
K+NlSioHEb0JkWcfsqLNs9G0eghj1MxvRC5YenyRYbOoZBkkDc57Nq0CgYEAwVyD
royhTKtsbtUT3J/zvSfoYonDW6oVNF+OYdfvZTZQpTpaxbsBwCcI//ty+7hTGMKu
PcF01XIVh+nqm5FU2paKhCo3OHgBBbNi2AjPxE7DPfcBp/VOfVngxpMTb2ImeYW2
b79a8sJfn8oKtdu8Eje22dj/0uTS494tPSqR/4UCgYBOxm2LbOctABfdOFPKPvSy
cYjt9C5jlAFhSkcuFgignwtYdc7+ffeV5OZ/Kmc3SlvyQj/opty8uTaDbp3yUQyM
WnjXqN1ZNmkJPuhf5cr0m4qd3OqQGqJLVRPGXWAqg2cVieRdYo7gXCR11fh5sb2L
SRxukrEtYospvHCXcWpQ5QJ/MpsD26ryjB5RQrCBgjxajibjquZjOppI8mwP14us
G9EbSiL7nsRSsPeGY3hrn3WeSdypvX/kE/jHqcqOnChtDMhZeD2UNjMyEUvhkqi7
t6TldFIxHMQWxre/HDlh3MTTTPqxxI1QQDiezjMSmoXnstzh/iHM0mUQzJJZRKjf
jQKBgGAPK9saOgfFZHPA/TTjNHrTFcMteZxcho9rcInR1lT2mlXXkkN/GqbrV7YW
84/Llkdd8wWN10eewxLIOI5sP95fq3GwAVm0eVetN8gWb9mTEacSRjl8Dt70tMHz
Hs3qMBZxxZcMNNZATxniYMq+w30B2UjVk74k7NWnoEESaDnW
-----END RSA PRIVATE KEY-----";
    const RSA_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAqd/buC1yVcqTpAXatQD5
+cVdUXhi7yh4McqdCAVtTjEqyT+C+BK1WEguvpp8r0FaQhe0Pd5Cl2aT7HTBBZwH
r6j+WoHwZ6qwCwFWa4FAPkl9D/J9eE7jSMTwcgcEcIlXzZmumQXVFzWi8X2iF+cx
XWlXWy3SVBpp+9YF1ipPkeA9POsRpOd1Yr4VQtlKdut/NYT+Ug15qBkKJrP1tdjL
i7c+CJCo/MPLJbgux9xWfq0jV7vh9HZ06r/KPVtNZxCrIzRRP/NgpUg+lIPMfkQb
K5G9ApLcx1e9HbH4Fo+NpdrYRvBh/X9KR1rE+VqDkhARfBBbkE6XJy1oqhbUW3a6
4QIDAQAB
-----END PUBLIC KEY-----";

    fn contents(pem: &str) -> Vec<u8> {
        Pem::iter_from_buffer(pem.as_bytes()).next().expect("a block").expect("PEM").contents
    }

    /// As openssl writes it.
    fn sec1(curve: &[u64], private: &[u8], public: &[u8]) -> Vec<u8> {
        construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_u8(1);
                writer.next().write_bytes(private);
                let curve = ObjectIdentifier::from_slice(curve);
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_oid(&curve));
                let bits = public.len() * 8;
                writer.next().write_tagged(Tag::context(1), |writer| writer.write_bitvec_bytes(public, bits));
            });
        })
    }

    /// The number in a PKCS#8 key of this library's.
    fn private(pkcs8: &[u8]) -> Vec<u8> {
        let inner = parse_der(pkcs8, |reader| {
            reader.read_sequence(|reader| {
                reader.next().read_u8()?;
                reader.next().read_der()?;
                reader.next().read_bytes()
            })
        });
        let read = parse_der(&inner.expect("PKCS#8"), |reader| {
            reader.read_sequence(|reader| {
                reader.next().read_u8()?;
                let private = reader.next().read_bytes()?;
                while reader.read_optional(|reader| reader.read_der())?.is_some() {}
                Ok(private)
            })
        });
        read.expect("a private key")
    }

    #[test]
    fn rsa_keys_have_the_public_part_that_openssl_says() {
        let (pkcs1, public) = (contents(RSA), contents(RSA_PUBLIC));
        assert_eq!(public_part("RSA PRIVATE KEY", &pkcs1).as_ref(), Some(&public));
        let pkcs8 = construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_u8(0);
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(RSA_KEY));
                    writer.next().write_null();
                });
                writer.next().write_bytes(&pkcs1);
            });
        });
        assert_eq!(public_part("PRIVATE KEY", &pkcs8).as_ref(), Some(&public));
        assert_eq!(public_part("EC PRIVATE KEY", &pkcs1), None, "of another kind");
    }

    #[test]
    fn keys_on_both_curves_have_their_public_part() {
        for ((curve, _), algorithm) in CURVES.iter().zip([&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384]) {
            let [made, other] = [(); 2].map(|()| Made::generate_for(algorithm).expect("a key"));
            let (pkcs8, public) = (made.serialize_der(), made.subject_public_key_info());
            assert_eq!(public_part("PRIVATE KEY", &pkcs8).as_ref(), Some(&public));
            let whole = sec1(curve, &private(&pkcs8), made.public_key_raw());
            assert_eq!(public_part("EC PRIVATE KEY", &whole).as_ref(), Some(&public));
            let mixed = sec1(curve, &private(&pkcs8), other.public_key_raw());
            assert_eq!(public_part("EC PRIVATE KEY", &mixed), None, "they do not belong together");
        }
    }
}
