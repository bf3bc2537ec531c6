{{- define "diptych.serveConfig" -}}
{{- .Values.serveConfig | default (.Files.Get (printf "overlays/%s/applications.yaml" .Values.profile)) -}}
{{- end -}}

{{/* Change a pod's spec, in place, to what holds for all. */}}
{{- define "diptych.pod" -}}
{{- $secrets := list -}}
{{- range .Values.imagePullSecrets }}{{ $secrets = append $secrets (dict "name" .) }}{{ end -}}
{{- $_ := set .pod "imagePullSecrets" $secrets -}}
{{- if .Values.openshift -}}
{{- range list "runAsUser" "runAsGroup" "fsGroup" "fsGroupChangePolicy" }}{{ $_ := unset $.pod.securityContext . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Change a group, in place: its numbers, its image, where it may run. */}}
{{- define "diptych.group" -}}
{{- range list "replicas" "minReplicas" "maxReplicas" }}{{ $_ := set $.group . (get $.numbers .) }}{{ end -}}
{{- $pod := .group.template.spec -}}
{{- $container := index $pod.containers 0 -}}
{{- $_ := set $container "image" .image -}}
{{- $_ := set (index $pod.topologySpreadConstraints 0) "whenUnsatisfiable" .Values.spread -}}
{{- include "diptych.pod" (dict "pod" $pod "Values" .Values) -}}
{{- if .Values.tracing -}}
{{- range $container.env }}{{ if eq .name "OTEL_EXPORTER_OTLP_ENDPOINT" }}{{ $_ := set . "value" $.Values.tracing }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Change the volume of weights, in place, to what is wanted. */}}
{{- define "diptych.cache" -}}
{{- if has .Values.cache.kind (list "claim" "shared") -}}
{{- $_ := unset .volume "emptyDir" -}}
{{- $_ := set .volume "persistentVolumeClaim" (dict "claimName" "diptych-models") -}}
{{- else if eq .Values.cache.kind "per-pod" -}}
{{- $_ := unset .volume "emptyDir" -}}
{{- $claim := dict "accessModes" (list "ReadWriteOnce") "resources" (dict "requests" (dict "storage" .size)) -}}
{{- with .Values.cache.storageClassName }}{{ $_ := set $claim "storageClassName" . }}{{ end -}}
{{- $_ := set .volume "ephemeral" (dict "volumeClaimTemplate" (dict "spec" $claim)) -}}
{{- end -}}
{{- end -}}
