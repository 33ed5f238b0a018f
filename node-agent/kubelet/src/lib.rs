//! hawser-kubelet
